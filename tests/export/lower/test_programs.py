"""Whole programs of many kinds of models: their graphs, run depth by depth, compute what the reference's ops do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lowered import call, write
from model_run import Model, random_tensors, types_of, values
from programs import PROGRAMS

from edgeloop.export.lower.graph import Stored
from edgeloop.export.lower.onnx import check, write_graphs
from edgeloop.export.reference import reference_engine
from edgeloop.export.targets.onnx.target import check_parity
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes, can_fill
from edgeloop.runtime.engines.onnx.engine import OnnxBackend, graph_name
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.transform import keys_values

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
REFUSED = {
    "shared": "does not take attend with heads of 4 where depths share K/V",
    "parallel_loop": "does not take shift",
}
TAKEN = [name for name in PROGRAMS if name not in REFUSED]


class Graphs:
    """The graphs of ``model``, and the caches of one sequence."""

    def __init__(self, model: Model, folder: Path, packed: bool) -> None:
        program, self.packed = model.program, packed
        check(program)
        stored = Stored.open(write(model.stored, folder), 0)
        self.program, self.paths = program, write_graphs(program, stored, fill=False)
        self.caches: dict[tuple[str, int], list[list[np.ndarray]]] = {}
        self.cached = 0

    def run(self, ids: list[int]) -> np.ndarray:
        """Logits [n, V] of new tokens."""
        n, program = len(ids), self.program
        given = {"ids": np.array(ids).reshape(self._rows(n)), "rows": np.arange(n)}
        state = self._call(graph_name("prologue", packed=self.packed), "prologue", 0, given, n)["state"]
        for depth, block in enumerate(program.loop.schedule):
            state = self._call(graph_name("block", block, self.packed), "block", depth, {"state": state}, n)[
                "next"
            ]
        name = graph_name("epilogue", packed=self.packed)
        logits = self._call(name, "epilogue", 0, {"state": state, "rows": np.arange(n)}, n)["logits"]
        self.cached += n
        return logits

    def _rows(self, n: int) -> tuple[int, int]:
        return (n, 1) if self.packed else (1, n)

    def _call(
        self, name: str, stage: str, depth: int, given: dict[str, np.ndarray], n: int
    ) -> dict[str, np.ndarray]:
        arrays = (
            np.array([depth]), np.array([self.cached], np.int32), np.array([n], np.int32),
            self.cached + np.arange(n)[None],
        )  # fmt: skip
        lanes = (PackedLanes if self.packed else Lanes)(*arrays, types=types_of(n)[None])
        caches = self.caches.setdefault(
            (stage, depth),
            [
                [np.zeros((1, shape.kv_heads, 16, shape.head_dim), np.float32) for _ in "kv"]
                for shape in self.program.caches(stage)
            ],
        )
        return call(self.program, self.paths[name], given, lanes, caches)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_in_chunks_and_token_by_token(tmp_path: Path, name: str, packed: bool) -> None:
    model = made(PROGRAMS[name])
    graphs = Graphs(model, tmp_path, packed)
    # An encoder has no cache: it sees a text at once.
    for part in (IDS,) if name == "encoder" else (IDS[:3], IDS[3:7], IDS[7:]):
        found, wanted = graphs.run(part), model.run(part)
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in ("encoder", "routed")])
def test_the_engine_runs_them(tmp_path: Path, name: str) -> None:
    """With a graph for each block of the loop and tables for each rotation; K and V of skipped depths are filled in."""
    model = made(PROGRAMS[name])
    stored = Stored.open(write(model.stored, tmp_path), 0)
    backend = OnnxBackend(model.program, write_graphs(model.program, stored, fill=True))
    loop = SequentialDecoder(backend, backend.new_cache(1, 16))
    for part in (IDS[:3], IDS[3:7], IDS[7:]):
        found = loop.prompt(np.array(part), rows="all")
        np.testing.assert_allclose(found, model.run(part), rtol=1e-4, atol=1e-4)
    if model.program.depths == 1:
        return
    depths = model.program.depths
    state = np.random.default_rng(0).standard_normal((depths, 2, model.program.width)).astype(np.float32)
    lanes = Lanes(
        np.arange(depths), *np.repeat([[8], [2]], depths, 1).astype(np.int32), np.tile([8, 9], (depths, 1))
    )
    backend.fill(state, lanes, loop.cache)
    for depth in range(depths):
        block, width = model.program.stage("block", depth), model.program.loop.carries[0].width
        slots = keys_values(block)
        lane = model.lane("fill", slots, depth, 2)
        carries = np.split(state[depth], model.program.width // width, axis=1)
        wanted = values(slots, replace(lane, positions=np.array([8, 9])), *carries)
        for pair, names in zip(
            loop.cache.stages["block"], zip(slots.outputs[::2], slots.outputs[1::2], strict=True), strict=True
        ):
            for array, value in zip(pair, names, strict=True):
                rows = array[depth, :, 8:10].transpose(1, 0, 2).reshape(2, -1)
                np.testing.assert_allclose(rows, wanted[value], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt", "adapted", "hierarchical", "positioned"])
def test_parity_at_export(tmp_path: Path, name: str) -> None:
    """Depths of a call mixed, packed lanes, K and V filled in: what an export compares."""
    model = made(PROGRAMS[name])
    file = write(model.stored, tmp_path)
    graphs = write_graphs(model.program, Stored.open(file, 0), can_fill(model.program))
    parity = check_parity(reference_engine(model.program, file, Recipe.named("none", 32)), graphs, None)
    assert len(parity.per_depth) == model.program.depths
    assert max(*parity.per_depth, parity.logits) < 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_lanes_of_two_blocks_in_one_call(tmp_path: Path, packed: bool) -> None:
    """A lane a depth, as pipelined decoding has them, beside an idle one; padded where they are not packed."""
    model = made(PROGRAMS["hierarchical"])
    stored = Stored.open(write(model.stored, tmp_path), 0)
    graphs = write_graphs(model.program, stored, fill=False)
    backend = OnnxBackend(model.program, graphs, packed=packed)
    depth, cached, tokens = np.array([0, 3, 1, 3]), np.zeros(4, np.int32), np.array([2, 1, 0, 2], np.int32)
    arrays = depth, cached, tokens, np.tile([0, 1], (4, 1))
    state = np.random.default_rng(0).standard_normal((4, 2, model.program.width)).astype(np.float32)
    lanes = PackedLanes(*arrays) if packed else Lanes(*arrays)
    given = lanes.pack(state) if isinstance(lanes, PackedLanes) else state
    found = backend.block(given, lanes, backend.new_cache(1, 4)).copy()
    found = lanes.pad(found) if isinstance(lanes, PackedLanes) else found
    for b in np.flatnonzero(tokens):
        n = tokens[b]
        block = model.program.stage("block", int(depth[b]))
        model.kept.clear()
        lane = model.lane("block", block, int(depth[b]), int(n))
        wanted = values(block, lane, *np.split(state[b, :n], 2, axis=1))
        rows = np.concatenate([wanted[name] for name in block.outputs], 1)
        np.testing.assert_allclose(found[b, :n], rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=REFUSED[name]):
        check(PROGRAMS[name]())


def made(make: Callable[[], Program]) -> Model:
    program = make()
    return Model(program, random_tensors(program.weights))
