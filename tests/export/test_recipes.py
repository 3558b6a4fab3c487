"""A recipe of several formats: the same codes in every artifact, told by the manifest; refusals by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_packages import codes_of, package_of, rows_held
from lanes_files import held
from safetensors.numpy import load_file
from tiny import looped_layer
from xnnpack_bytes import code_bytes

from edgeloop.apps.cli import main
from edgeloop.apps.storage import stored_kinds
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.model.codec import Grouped, around_zero
from edgeloop.runtime.session import Session

RULE = '[[rules]]\nmatch = "{}"\nbits = {}\n'
GROUP = "group = {}\n"
MIXED = (
    RULE.format("embed", 8) + 'group = "channel"\n'
    + RULE.format("*.down_proj", 8) + 'group = "channel"\n'
    + RULE.format("*.o_proj", 4) + GROUP.format(64)
    + RULE.format("*", 4) + GROUP.format(32)
)  # fmt: skip
"""What all four targets hold."""
MORE = (
    RULE.format("embed", 16)
    + RULE.format("*.down_proj", 8) + GROUP.format(64)
    + RULE.format("*.o_proj", 4) + '{}'
    + RULE.format("*", 4) + GROUP.format(32)
)  # fmt: skip


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looped_layer(tmp_path_factory.mktemp("recipes") / "looped", max_position_embeddings=32)


@pytest.fixture(scope="module")
def made(looped: Path) -> Callable[..., Bundle]:
    def get(recipe: str, *targets: str) -> Bundle:
        path = looped.with_name("mine.toml")
        path.write_text(recipe)
        out = looped.with_name(f"{hash(recipe)}-{'-'.join(targets)}")
        if not out.exists():
            export_bundle(looped, out, recipe=path, targets=targets)
        return Bundle.open(out)

    return get


def stored(bundle: Bundle) -> Mapping[str, Any]:
    return load_file(bundle.path(bundle.manifest.targets["onnx"].weights))


def codes(bundle: Bundle) -> dict[str, tuple[Any, Any]]:
    """(signed codes [N, ⌈K/G⌉·G], scales) of every matrix by its name, from what onnx has."""
    found, tensors = {}, stored(bundle)
    for name in tensors:
        if name.endswith(".codes"):
            stem = name.removesuffix(".codes")
            signed = around_zero(tensors[name], bundle.manifest.quantization.storage(stem).bits)
            found[stem] = signed.reshape(len(signed), -1), tensors[f"{stem}.scales"]
    return found


@pytest.mark.parametrize("recipe", [MIXED, MORE.format(GROUP.format(64))], ids=["mixed", "more"])
def test_the_lane_engines_file_has_the_same_tensors(made: Callable[..., Bundle], recipe: str) -> None:
    bundle = made(recipe, "onnx", "native")
    wanted = stored(bundle)
    found = held(bundle)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].tobytes()) == (tensor.dtype, tensor.tobytes()), name
    assert audit(bundle.folder).findings == ()


def test_the_manifest_says_which_matrix_is_stored_how(made: Callable[..., Bundle]) -> None:
    bundle = made(MIXED, "onnx", "native")
    said = bundle.manifest.quantization
    assert (said.scheme, said.bits, said.group_size) == ("mine", 4, 32)
    assert {name: (each.bits, each.group_size) for name, each in said.others.items()} == {
        "embed": (8, 0),
        "segments.0.layers.0.down_proj": (8, 0),
        "segments.0.layers.0.o_proj": (4, 64),
    }
    kinds = {kind.storage: kind for kind in stored_kinds(bundle.manifest)}
    bits = {storage: kind.bits_per_weight for storage, kind in kinds.items()}
    tensors, program = stored(bundle), bundle.program
    for storage, kind in kinds.items():
        sizes = [tensors[f"{n}.{s}"].nbytes for n in kind.matrices for s in ("codes", "scales")]
        numbers = sum(program.matrix(n).rows * program.matrix(n).columns for n in kind.matrices)
        assert (kind.weights, bits[storage]) == (numbers, pytest.approx(8 * sum(sizes) / numbers))
    assert bits["4 bits in groups of 32"] == 4.5


def test_a_core_ml_package_has_the_same_codes(made: Callable[..., Bundle]) -> None:
    pytest.importorskip("coremltools")
    bundle = made(MIXED, "onnx", "coreml")
    found = codes_of(package_of(bundle))
    for name, pair in codes(bundle).items():  # whole, or in pieces where K and V are computed alone
        assert rows_held(found, *pair).all(), name


def test_an_executorch_program_has_the_same_codes(made: Callable[..., Bundle]) -> None:
    pytest.importorskip("executorch")
    bundle = made(MIXED, "onnx", "executorch")
    data = (bundle.folder / "executorch" / "model.pte").read_bytes()
    tensors = stored(bundle)
    for name in codes(bundle):
        bits = bundle.manifest.quantization.storage(name).bits
        parts = code_bytes(tensors[f"{name}.codes"], tensors[f"{name}.scales"], bits)
        assert all(part in data for part in parts), name


DELTAS = 'deltas = "int8"\n' + RULE.format("*", 4) + GROUP.format(32)


def test_deltas_in_8_bits(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their codes, of all depths, are in the lane engine's file; the nearest ones, and audited."""
    (tmp_path / "d.toml").write_text(DELTAS)
    source = tiny("mor-lora")
    export_bundle(source, tmp_path / "b", recipe=tmp_path / "d.toml", targets=["native"])
    export_bundle(source, tmp_path / "floats", quant="none", targets=["native"])
    assert audit(tmp_path / "b").findings == ()
    assert main(["show", str(tmp_path / "b")]) == 0
    assert "d, groups of 32, deltas in 8 bits, " in capsys.readouterr().out
    with closing(Session.open(tmp_path / "b")) as session:
        assert np.isfinite(session.logits([1, 2, 3])).all()
    bundles = [Bundle.open(tmp_path / name) for name in ("b", "floats")]
    coded, floats = (held(b) for b in bundles)
    sides = [name for name in floats if name.endswith((".lora_a", ".lora_b"))]
    assert sides
    for name in sides:
        rows = floats[name].reshape(-1, floats[name].shape[-1])
        values = Grouped(coded[f"{name}.codes"], coded[f"{name}.scales"], 8, rows.shape[1]).values()
        steps = coded[f"{name}.scales"].astype(np.float32)
        assert (np.abs(values - rows) <= 0.501 * steps + 1e-7 * np.abs(rows)).all(), name


@pytest.mark.parametrize(
    ("recipe", "target", "message"),
    [
        (MORE.format('group = "channel"\n'), "onnx", "o_proj is stored as 4 bits with a scale a row, and ONNX"),
        (MORE.format(GROUP.format(32)), "executorch", "recipe mine stores embed as float16, and XNNPACK"),
        (RULE.format("*", 4) + 'group = "channel"\n', "executorch", "embed is stored as 4 bits with a scale a row"),
        (RULE.format("*", 4) + GROUP.format(64), "executorch", "down_proj has 96 columns, not a multiple of"),
        (RULE.format("*", 8) + GROUP.format(64), "executorch", "embed is stored as 8 bits in groups of 64, and XNN"),
    ],
)  # fmt: skip
def test_what_a_target_does_not_hold(
    looped: Path, tmp_path: Path, recipe: str, target: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe)
    with pytest.raises(ExportError, match=message):
        export_bundle(looped, tmp_path / "b", recipe=path, targets=[target])
    assert not (tmp_path / "b").exists()


def test_a_rule_for_nothing(looped: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RULE.format("head", 8) + GROUP.format(32) + RULE.format("*", 4) + GROUP.format(32))
    with pytest.raises(UsageError, match="rule 'head' of recipe mine is the first match of no matrix"):
        export_bundle(looped, tmp_path / "b", recipe=path)


@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
def test_deltas_in_8_bits_are_the_lane_engines(
    tiny: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    (tmp_path / "d.toml").write_text(DELTAS)
    with pytest.raises(ExportError, match=f"lora_a as 8 bits with a scale a row, which target {target}"):
        export_bundle(tiny("mor-lora"), tmp_path / "b", recipe=tmp_path / "d.toml", targets=[target])
    assert not (tmp_path / "b").exists()
