"""Programs drawn by lot: what an export's parity step asks for holds of every one, on each engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from lowered import random_weights, write
from mutant_runs import small
from random_programs import random_program

from edgeloop.export.lower import onnx
from edgeloop.export.lower.graph import Stored
from edgeloop.export.parity import Expected
from edgeloop.export.targets.onnx.target import OnnxTarget
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.engines.backend import Backend, can_fill
from edgeloop.runtime.engines.onnx.engine import OnnxBackend
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.program import Program

FEW = (*range(0, 1200, 100), 20)  # 20: a bias of each depth behind a rescaled delta
FLOATS = Recipe.named("none", 32)
Opened = Callable[[Program, dict, Path, pytest.MonkeyPatch], tuple[Backend, Backend]]


def on_onnx(model: Program, stored: dict, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Backend, Backend]:
    """Plain graphs, and packed ones, which an encoder has none of."""
    OnnxTarget().check(model, FLOATS)
    graphs = onnx.write_graphs(
        model, Stored.open(write(stored, folder), 0), can_fill(model), not model.encoder
    )
    plain = OnnxBackend(model, graphs)
    return plain, plain if model.encoder else OnnxBackend(model, graphs, packed=True)


def on_executorch(
    model: Program, stored: dict, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[Backend, Backend]:
    """The modules that methods are lowered from."""
    pytest.importorskip("executorch")
    from xnnpack_modules import opened

    from edgeloop.export.targets.executorch.target import ExecutorchTarget

    ExecutorchTarget().check(model, FLOATS)
    engine = opened(model, stored, folder, patch)
    return engine, engine


@pytest.mark.parametrize("engine", [on_onnx, on_executorch])
@pytest.mark.parametrize("seed", FEW)
def test_engines_agree(engine: Opened, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first program from ``seed`` on that the engine takes; what is refused has tests of its own."""
    for number in count(seed):
        model = random_program(number)
        stored = {name: small(name, value) for name, value in random_weights(model.weights).items()}
        with suppress(ExportError):
            engines = engine(model, stored, tmp_path, monkeypatch)
            break
    Expected.of(ReferenceBackend(model, stored, 0)).check("it", *engines)
