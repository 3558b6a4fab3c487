"""Readings, oracles and bundles of tiny checkpoints; an export is expensive, so each is made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import coreml_packages
import pytest
import torch
from editing import read
from tiny import KINDS, ROUTERS

from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.export.target import Job
from edgeloop.quant.pack import quantize
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle import manifest
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.weights import tensors

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
NATIVE = Path(__file__).parents[2] / "apps" / "board" / "native"
FLOAT = 1  # MatMulNBits accuracy level; the oracle takes no notice


@pytest.fixture(scope="session")
def checkpoint(tiny_once: Callable[[str], Path]) -> Callable[[str], Path]:
    """``checkpoint("mor-lora")`` is a tiny checkpoint, ``checkpoint("ouro_tiny")`` an author's."""
    return lambda kind: tiny_once(kind) if kind in KINDS | ROUTERS else PARITY / kind


@pytest.fixture(scope="session")
def reading(checkpoint: Callable[[str], Path]) -> Callable[[str], Reading]:
    """What a checkpoint says, read once."""
    made: dict[str, Reading] = {}

    def get(kind: str) -> Reading:
        if kind not in made:
            made[kind] = read(checkpoint(kind))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def oracle(
    reading: Callable[[str], Reading], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ReferenceBackend]:
    """``oracle("mor-lora", "int4", 64)``: the reference engine over stored weights."""
    root = tmp_path_factory.mktemp("stored")

    def get(kind: str, quant: str = "none", group_size: int = 32) -> ReferenceBackend:
        recipe = Recipe.named(quant, group_size)
        path = root / f"{kind}-{quant}-{group_size}.safetensors"
        if not path.exists():
            write_weights(reading(kind), recipe, path)
        return reference_engine(reading(kind).program, path, recipe)

    return get


@pytest.fixture(scope="session")
def exported(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``exported("ouro", "int4", 64)``: a bundle, shared. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("bundles")

    def get(kind: str, quant: str = "none", group_size: int = 32) -> Path:
        out = root / f"{kind}-{quant}-{group_size}"
        if not out.exists():
            export_bundle(checkpoint(kind), out, quant=quant, group_size=group_size)
        return out

    return get


@pytest.fixture(scope="session")
def packaged(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """``packaged("ouro", "int4", 64)``: a bundle of the coreml target, shared. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("coreml")

    def get(kind: str, quant: str = "", group_size: int = 32, ane: bool = False) -> Bundle:
        quant = quant or ("int4" if ane else coreml_packages.KINDS[kind])
        out = root / f"{kind}-{quant}-{group_size}-{ane}"
        if not out.exists():
            export_bundle(
                checkpoint(kind),
                out,
                targets=["coreml"],
                quant=quant,
                group_size=group_size,
                options={"coreml_ane": ane},
            )
        return Bundle.open(out)

    return get


@pytest.fixture(scope="session")
def stored_reading(reading: Callable[[str], Reading]) -> Callable[..., Reading]:
    """``stored_reading("ouro", "int4", 64)``: the reading of a model whose weights are what the recipe keeps."""

    def get(kind: str, quant: str, group_size: int = 32) -> Reading:
        original, recipe = reading(kind), Recipe.named(quant, group_size)
        stored = [tensor for _, tensor in tensors(original.program.weights)]
        kinds = {part: tensor.kind for tensor in stored for part in tensor.parts}

        def kept(name: str) -> torch.Tensor:
            tensor, storage = original.tensors[name](), recipe.storage(name, kinds[name])
            if storage.is_float:
                return tensor if storage.bits == 32 else tensor.half().float()
            return torch.from_numpy(quantize(tensor, storage.bits, storage.group_size).values().copy())

        return replace(original, tensors={name: partial(kept, name) for name in original.tensors})

    return get


class QuickTarget:
    """A target that copies the weights and writes a text: for tests of what is around a target."""

    name = "onnx"

    def check(self, program: object, recipe: object) -> None:
        pass

    def export(self, job: Job) -> manifest.Target:
        folder = job.folder / "onnx"
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(job.weights.read_bytes())
        graphs = {}
        for stage in ("prologue", "block", "epilogue"):
            job.progress(f"onnx: {stage} graph", 0.5)
            (folder / f"{stage}.onnx").write_text(stage * 100)
            graphs[stage] = f"onnx/{stage}.onnx"
        return manifest.Target(graphs, "onnx/weights.safetensors", manifest.Parity((0.0,), 0.0, 0.0))


@pytest.fixture
def quick_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeloop.export.pipeline.open_target", lambda name, layout, options: QuickTarget())


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory, lane_engine: Path) -> Path:
    """The native runner, built as the README has it."""
    if shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip("no make and g++ to build the native runner with")
    runner = tmp_path_factory.mktemp("native") / "edgeloop-run"
    make = ["make", "-s", "-C", str(NATIVE), f"PYTHON={sys.executable}", f"OUT={runner}"]
    subprocess.run(make, check=True, capture_output=True)
    return runner
