"""The parts of the ExecuTorch engine that need no ExecuTorch: calls, the embedding, what is missing."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.executorch.calls import batches, valid_runs
from edgeloop.runtime.engines.executorch.layout import (
    EmbeddingTable,
    Layout,
    Shapes,
    Sizes,
    checksum,
    read_layout,
)
from edgeloop.runtime.engines.executorch.table import Embedding
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.model.codec import pack


def lanes(tokens: list[int], cls: type[Lanes] = Lanes) -> Lanes:
    n = np.array(tokens, np.int32)
    return cls(np.zeros(len(n)), np.zeros(len(n)), n, np.zeros((len(n), max(tokens)), np.int64))


def described(found: Lanes, most: int = 2, chunk: int = 8) -> list[tuple[str, list[tuple[int, int, int]]]]:
    return [
        ("chunk" if batch.chunk else "rows", [(run.lane, run.token, run.row) for run in batch.runs])
        for batch in batches(valid_runs(found), most, chunk)
    ]


def test_rows_of_all_lanes_share_calls():
    assert described(lanes([1, 0, 2])) == [("rows", [(0, 0, 0), (2, 0, 4)]), ("rows", [(2, 1, 5)])]


def test_packed_rows_follow_each_other():
    assert described(lanes([1, 0, 2], PackedLanes)) == [
        ("rows", [(0, 0, 0), (2, 0, 1)]),
        ("rows", [(2, 1, 2)]),
    ]


def test_long_lanes_run_in_chunks():
    found = list(batches(valid_runs(lanes([20, 1])), 2, 8))
    assert [(b.chunk, b.rows) for b in found] == [(True, 8), (True, 8), (True, 4), (False, 1)]
    assert [b.runs[0].token for b in found] == [0, 8, 16, 0]


def test_methods_of_a_model(maker):
    names = [
        name
        for kind in Shapes.of(maker.program()).kinds(maker.program())
        for name, *_ in Shapes(3, 64).methods(kind)
    ]
    assert names == [
        *("prologue_m1", "prologue_prefill", "block_m1", "block_m2", "block_m3", "block_prefill"),
        *("fill_m1", "fill_prefill", "epilogue_m1", "epilogue_prefill", "head_m1", "head_m3", "head_prefill"),
    ]


@pytest.mark.parametrize("kind", ["float32", "int4", "int8"])
def test_embedding_rows(tmp_path, kind):
    random = np.random.default_rng(0)
    scales = (random.integers(0x3C00, 0x3F80, (5, 2)).astype(np.uint32) << 16).view(np.float32)
    codes = random.integers(-8, 8, (5, 8)).astype(np.int8)
    if kind == "float32":
        wanted = random.standard_normal((5, 8)).astype(np.float32)
        values, tail = wanted.tobytes(), b""
    else:
        wanted = codes.astype(np.float32) * np.repeat(scales, 4, axis=1)
        shifted = (codes + 8).astype(np.uint8)
        values = pack(shifted, 4).tobytes() if kind == "int4" else codes.tobytes()
        half = (scales.view(np.uint32) >> 16).astype(np.uint16)
        tail = half.tobytes() if kind == "int4" else scales.tobytes()
    (tmp_path / "t").write_bytes(b"head" + values + tail)
    check = checksum([values, tail] if tail else [values])
    table = EmbeddingTable(
        "t", kind, 4, check, 4 + len(values), "bfloat16" if kind == "int4" else "float32", 2
    )
    embedding = Embedding(tmp_path / "t", table, 5, 8)
    np.testing.assert_array_equal(embedding.rows(np.array([4, 0, 4])), wanted[[4, 0, 4]])
    with pytest.raises(BundleError, match="no embedding in it"):
        Embedding(tmp_path / "t", table, 500, 8)
    (tmp_path / "t").write_bytes(b"other" + values + tail + b"more")
    with pytest.raises(BundleError, match="is not where the layout has it; they come from two exports"):
        Embedding(tmp_path / "t", table, 5, 8)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("shapes/rows", 10**9, "shapes.rows is 1000000000, wanted 1 to 4"),
        ("shapes/rows", 0, "shapes.rows is 0"),
        ("shapes/chunk", 0, "shapes.chunk is 0"),
        ("shapes/chunk", -8, "shapes.chunk is -8"),
        ("shapes/chunk", 10**9, "shapes.chunk is 1000000000"),
        ("embedding/values", -64, "embedding.values is -64"),
        ("embedding/scales", -1, "embedding.scales is -1"),
        ("embedding/values", 2**80, "embedding.values is 12089"),
        ("embedding/groups", 0, "embedding.groups is 0"),
        ("embedding/groups", 5, "embedding.groups is 5, which do not divide rows of 32"),
        ("embedding/kind", "int3", "int3"),
        ("shapes", {"rows": 1, "chunk": 8, "more": 1}, "more"),
    ],
)
def test_a_layout_that_cannot_be_meant(maker, tmp_path, place, value, told):
    layout = Layout(
        "1",
        "model.pte",
        Sizes.of(maker.program()),
        Shapes(3, 8),
        EmbeddingTable("model.pte", "int4", 0, 0, 64, "bfloat16", 4),
    )
    path = tmp_path / "layout.json"
    path.write_bytes(msgspec.json.encode(layout))
    assert read_layout(path, maker.program()) == layout
    written = json.loads(path.read_text())
    *way, last = place.split("/")
    inner = written
    for key in way:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(written))
    with pytest.raises(BundleError, match=r"layout\.json: ") as caught:
        read_layout(path, maker.program())
    assert told in str(caught.value)
