"""What was trained is in the artifacts of every target bit for bit: codes, scales, tables, norms, biases and deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_packages import codes_of, floats_of, package_of, palettes_of, rows_held
from dora import dora
from editing import edit_weights, louder
from lanes_files import held
from safetensors.numpy import load_file
from tiny import MOR, looped_layer
from trained import Made
from xnnpack_bytes import code_bytes, delta_bytes

from edgeloop.export.codes import NUMBERS, write_codes
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.stored import write_weights
from edgeloop.export.synth import synthesize_shape
from edgeloop.quant.recipe import INT8, Recipe, Rule, StorageFormat
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.model.codec import around_zero
from edgeloop.runtime.model.weights import tensors

STEPS = 30
EIGHT_AND_FOUR = Recipe("mixed", (Rule("*.down_proj", INT8), Rule("*", StorageFormat(4, 32))))
"""What ExecuTorch takes of a model whose down projection has rows of 56: no whole groups."""
FIXTURES = Path(__file__).parents[2] / "fixtures" / "parity"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Trained:
    """A folder of trained codes, what it holds, and what was stored before training."""

    checkpoint: Path
    codes: Path
    made: Made
    stored: Mapping[str, Array]
    before: Mapping[str, Array]

    def exported(self, target: str) -> Bundle:
        """A bundle of ``target`` with these codes, once."""
        out = self.codes.with_name(f"{self.codes.name}-{target}")
        export_bundle(self.checkpoint, out, codes=self.codes, targets=[target])
        return Bundle.open(out)

    def floats(self) -> Iterator[tuple[str, str, Array]]:
        """Every stored tensor that is no matrix: its name, kind and trained numbers."""
        for name, tensor in tensors(self.made.program.weights):
            if tensor.kind != "matrix":
                yield name, tensor.kind, self.stored[name]

    def bits(self) -> dict[str, int]:
        """The bits of each matrix by its name."""
        formats = self.made.recipe.formats(self.made.program.weights)
        return {name: storage.bits for name, storage in formats.items()}


def of(folder: Path, checkpoint: Path, recipe: Recipe) -> Trained:
    """``checkpoint`` trained; every tensor of floats has changed, and codes or scales of every matrix of codes."""
    made, codes, name = Made(folder, checkpoint, recipe), folder / "codes", recipe.name
    found = made.trained(STEPS)
    assert found.gained, name
    codes.mkdir()
    write_codes(codes, made.reading, recipe, made.ids, found.fitted, STEPS)
    write_weights(made.reading, recipe, folder / "before", made.codes)
    trained = Trained(checkpoint, codes, made, load_file(codes / NUMBERS), load_file(folder / "before"))
    for name, array in trained.stored.items():
        same = np.array_equal(array, trained.before[name])
        assert same == name.endswith((".indices", ".tables")) or name.endswith(".codes"), name
    return trained


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A layer that is run twice: norms, deltas and their factors of each depth."""
    folder = tmp_path_factory.mktemp("relaxed")
    shape = replace(MOR, sharing="cycle", layers=2, repeats=2, ln_share=False, context=32)
    synthesize_shape(shape, folder / "dora", dtype="float32")
    dora(folder / "dora", range(2))
    trained = of(folder, folder / "dora", Recipe.named("int4", 32))
    sides = {name.rpartition(".")[2] for name, _, _ in trained.floats()}
    assert sides == {"weight", "lora_a", "lora_b", "lora_scale"}
    assert any(value.ndim == 2 for _, kind, value in trained.floats() if kind == "vector")
    return trained


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Biases of matrices and of norms."""
    trained = of(tmp_path_factory.mktemp("biased"), FIXTURES / "fold_pythia", EIGHT_AND_FOUR)
    assert {name.rpartition(".")[2] for name, _, _ in trained.floats()} == {"weight", "bias"}
    assert any(name.endswith("norm_bias.weight") for name, _, _ in trained.floats())
    return trained


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Matrices in tables of values, norms and deltas of each depth."""
    folder = tmp_path_factory.mktemp("tables")
    looped = looped_layer(folder / "looped", max_position_embeddings=32)
    edit_weights(looped, louder)
    return of(folder, looped, Recipe.palettes())


@pytest.fixture(params=["relaxed", "biased"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def test_a_graphs_weights(trained: Trained) -> None:
    bundle = trained.exported("onnx")
    check_stored(trained, load_file(bundle.path(bundle.manifest.targets["onnx"].weights)))


@pytest.mark.usefixtures("lane_engine")
def test_the_lane_engines_file(trained: Trained) -> None:
    check_stored(trained, held(trained.exported("native")))


def check_stored(trained: Trained, found: Mapping[str, Array]) -> None:
    """Every tensor, A and B of deltas in float16."""
    assert set(found) == set(trained.stored)
    for name, wanted in trained.stored.items():
        kind = np.float16 if name.endswith((".lora_a", ".lora_b")) else wanted.dtype
        assert found[name].dtype == kind, name
        np.testing.assert_array_equal(found[name].reshape(wanted.shape), wanted, err_msg=name)


def test_a_core_ml_package(trained: Trained) -> None:
    package = package_of(trained.exported("coreml"))
    pairs = codes_of(package)
    for name, bits in trained.bits().items():
        codes, scales = (trained.stored[f"{name}.{side}"] for side in ("codes", "scales"))
        assert rows_held(pairs, around_zero(codes, bits).reshape(len(codes), -1), scales).all(), name
    check_halves(trained, package)


def test_a_core_ml_package_of_tables(tables: Trained) -> None:
    """They stay as they were fitted, and what is around them is trained."""
    package = package_of(tables.exported("coreml"))
    found = {row.tobytes() for indices, _ in palettes_of(package) for row in indices}
    values = {row.tobytes() for _, table in palettes_of(package) for row in table}
    for name in tables.bits():
        assert {row.tobytes() for row in tables.stored[f"{name}.indices"]} <= found, name
        assert {row.tobytes() for row in tables.stored[f"{name}.tables"]} <= values, name
    check_halves(tables, package)


def check_halves(trained: Trained, package: Path) -> None:
    """Every trained float, of each depth that there is one for, is in ``package`` as float16; no untrained one is."""
    arrays = floats_of(package)
    for name, _, value in trained.floats():
        before = trained.before[name].astype(value.dtype)
        many = value.ndim > 1
        for now, then in zip(value if many else value[None], before if many else before[None], strict=True):
            pieces = name.endswith(".bias")  # as the rows of its matrix may be
            assert numbers_held(arrays, now.astype(np.float16), pieces).all(), name
            assert not numbers_held(arrays, then.astype(np.float16), pieces).any(), name


def numbers_held(arrays: list[Array], wanted: Array, pieces: bool) -> Array:
    """Which numbers of ``wanted`` the ``arrays`` are, or with ``pieces`` some in a row of them."""
    held, data = np.zeros(wanted.size, bool), wanted.tobytes()
    for array in arrays:
        first, rest = divmod(data.find(array.tobytes()), wanted.itemsize)
        if first >= 0 and not rest and (pieces or array.size == wanted.size):
            held[first : first + array.size] = True
    return held


def test_an_executorch_program(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie; what was there before training is nowhere."""
    pytest.importorskip("executorch")
    from edgeloop.export.targets.executorch.target import ExecutorchTarget
    from edgeloop.runtime.engines.executorch.layout import Shapes

    target = ExecutorchTarget(Shapes(1, 8))
    monkeypatch.setattr("edgeloop.export.pipeline.open_target", lambda name, layout, options: target)
    folder = trained.exported("executorch").folder / "executorch"
    # A table that is no head as well is a file of its own: the host looks its rows up.
    data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    for name, bits in trained.bits().items():
        halves = (trained.stored[f"{name}.{side}"] for side in ("codes", "scales"))
        assert all(data.count(half) == 1 for half in code_bytes(*halves, bits)), name
    for name, kind, value in trained.floats():
        now, then = (
            delta_bytes(name, each) if kind == "delta" else np.ascontiguousarray(each.T, np.float32).tobytes()
            for each in (value, trained.before[name])
        )
        assert now in data, name
        assert then not in data, name
