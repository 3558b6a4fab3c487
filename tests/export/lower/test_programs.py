"""Whole programs of many kinds of models: their graphs, run depth by depth, compute what the reference's ops do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lowered import call, write
from model_run import Model, random_tensors
from programs import PROGRAMS

from edgeloop.export.lower.graph import Stored
from edgeloop.export.lower.onnx import check, write_graphs
from edgeloop.runtime.backend import Lanes
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.packed import PackedLanes

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
REFUSED = {
    "shared": "the depths share K and V and attention sees 5 tokens",
    "parallel_loop": "does not take shift",
}
TAKEN = [name for name in PROGRAMS if name not in REFUSED]


class Graphs:
    """The graphs of ``model``, and the caches of one sequence."""

    def __init__(self, model: Model, folder: Path, packed: bool) -> None:
        program, self.packed = model.program, packed
        check(program)
        blocks = [f"block.{i}" if i else "block" for i in range(len(program.loop.blocks))]
        stored = Stored.open(write(model.stored, folder), 0)
        self.program, self.paths = program, write_graphs(program, stored, ["prologue", *blocks, "epilogue"])
        self.caches: dict[tuple[str, int], list[list[np.ndarray]]] = {}
        self.cached = 0

    def run(self, ids: list[int]) -> np.ndarray:
        """Logits [n, V] of new tokens."""
        n, program = len(ids), self.program
        given = {"ids": np.array(ids).reshape(self._rows(n)), "rows": np.arange(n)}
        state = self._call("prologue", "prologue", 0, given, n)["state"]
        for depth, block in enumerate(program.loop.schedule):
            name = f"block.{block}" if block else "block"
            state = self._call(name, "block", depth, {"state": state}, n)["next"]
        logits = self._call("epilogue", "epilogue", 0, {"state": state, "rows": np.arange(n)}, n)["logits"]
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
        lanes = PackedLanes(*arrays) if self.packed else Lanes(*arrays)
        caches = self.caches.setdefault(
            (stage, depth),
            [
                [np.zeros((1, shape.kv_heads, 16, shape.head_dim), np.float32) for _ in "kv"]
                for shape in self.program.caches(stage)
            ],
        )
        path = self.paths[f"{name}.packed" if self.packed else name]
        return call(self.program, path, given, lanes, caches)


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


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=REFUSED[name]):
        check(PROGRAMS[name]())


def made(make: Callable[[], Program]) -> Model:
    program = make()
    return Model(program, random_tensors(program.weights))
