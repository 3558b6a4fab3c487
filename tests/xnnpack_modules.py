"""The ExecuTorch engine on the torch modules that its methods are lowered from: all but XNNPACK itself, in no time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_run import Tensors

from edgeloop.export.lower.xnnpack import check
from edgeloop.export.targets.executorch.methods import Methods, build_methods
from edgeloop.export.targets.executorch.target import place_tables
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.engines.executorch import engine as executorch
from edgeloop.runtime.engines.executorch.layout import Layout, Shapes, Sizes
from edgeloop.runtime.model.program import Program


class PteBinding:
    def __init__(
        self, name: str, inputs: list[F32], outputs: list[F32], caches: list[F32], lanes: int
    ) -> None:
        self.name, self.inputs, self.outputs, self.caches, self.lanes = name, inputs, outputs, caches, lanes
        self.at = np.zeros(max(len(outputs[0]), 1), np.int32)


class Modules:
    """The modules themselves in place of a program: what a bridge does, on torch."""

    def __init__(self, methods: Methods) -> None:
        self.methods = methods

    def sizes(self, name: str, index: int, output: bool = False) -> list[int]:
        inputs, _ = self.methods[name].example()
        return list((self.methods[name](*inputs) if output else inputs)[index].shape)

    def plan(
        self,
        name: str,
        inputs: list[F32],
        outputs: list[F32],
        caches: list[F32],
        lanes: int,
        fresh: list[F32],
    ) -> PteBinding:
        """As ``Bridge.plan``; the shapes have to be those of the method, but for the rows of caches."""
        examples, free = self.methods[name].example()
        for array, example, axes in zip(inputs, examples, free, strict=True):
            fixed = [i for i in range(array.ndim) if i not in (axes or {})]
            assert [array.shape[i] for i in fixed] == [example.shape[i] for i in fixed], name
        return PteBinding(name, inputs, outputs, caches, lanes)

    def run(self, plan: PteBinding, rows: int) -> None:
        with torch.no_grad():
            found = self.methods[plan.name](*map(torch.from_numpy, plan.inputs))
        for array, value in zip(plan.outputs, found, strict=True):
            array[:] = value.numpy()
        fresh = plan.outputs[-len(plan.caches) // plan.lanes :] if plan.caches else []
        fresh = [array for array in fresh if array.ndim == 3]
        for i, new in enumerate(fresh):
            for r in range(rows):
                plan.caches[i * plan.lanes + r % plan.lanes][:, plan.at[r]] = new[r]

    def close(self) -> None:
        pass


def opened(
    made: Program, stored: Tensors, folder: Path, patch: pytest.MonkeyPatch, shapes: Shapes | None = None
) -> executorch.ExecutorchBackend:
    """The engine on the modules of ``made``."""
    check(made)
    weights = {name: torch.from_numpy(tensor) for name, tensor in stored.items()}
    shapes = shapes or Shapes(Shapes.of(made).rows, min(Shapes.of(made).chunk, 16))
    bridge = Modules(build_methods(made, weights, shapes))
    patch.setattr(executorch, "Bridge", lambda *given: bridge)
    (folder / "model.pte").write_bytes(b"".join(tensor.tobytes() for tensor in stored.values()))
    tables = place_tables(made, weights, folder, "model.pte")
    layout = Layout("1", "model.pte", Sizes.of(made), shapes, tables[0], (), tuple(tables[1:]))
    return executorch.ExecutorchBackend(made, folder, layout, threads=1)
