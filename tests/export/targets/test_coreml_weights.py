"""What weight.bin holds: the numbers of quant/, each once, and little else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_packages import KINDS, PALETTIZED, blob, package_of, palettes_of
from editing import read
from msgspec import structs
from safetensors.numpy import load_file

from edgeloop.apps.storage import stored_kinds
from edgeloop.export import loop_gptq
from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.quantize import quantize_checkpoint
from edgeloop.export.stored import write_weights
from edgeloop.export.targets.coreml.constants import Store
from edgeloop.export.targets.coreml.errors import EXACT, SHIPPED
from edgeloop.export.targets.coreml.package import write_package
from edgeloop.export.targets.coreml.plan import PackagePlan
from edgeloop.quant.recipe import TABLES, Recipe
from edgeloop.quant.recipe_file import read_recipe
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.coreml.blobs import Blobs
from edgeloop.runtime.engines.coreml.interpreter import WEIGHTS, read_model
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.model.codec import Palette, around_zero
from edgeloop.runtime.model.facts import deltas
from edgeloop.runtime.model.ops import Linear

DEMO = Path(__file__).parents[3] / "apps" / "demo" / "checkpoint"


def weight_bytes(file: bytes, plan: PackagePlan) -> int:
    """The bytes of the arrays in a weight.bin that come from the model.

    Not the zeros that MIL's builder adds to every linear, nor the numbers of rows and tokens, nor cos and sin, nor an
    array's header and padding: a tenth of a file of 60 kB, and nothing of one of 60 MB.
    """
    sentinel, total = (0xDEADBEEF).to_bytes(4, "little"), 0
    for i in range(64, len(file), 64):
        if file[i : i + 4] == sentinel:
            length, start = (int.from_bytes(file[i + n : i + n + 8], "little") for n in (8, 16))
            total += length if any(file[start : start + length]) else 0
    return total - 4 * (plan.capacity + plan.chunk) - table_bytes(plan)


def table_bytes(plan: PackagePlan) -> int:
    """cos and sin of every position."""
    return sum(2 * plan.program.context_length * by.dims // 2 * 2 for by in plan.program.rotations)


def stem_of_layer(bundle: Bundle) -> str:
    """The prefix of the weights of the loop's first layer."""
    first = next(op for op in bundle.program.loop.blocks[0].ops if isinstance(op, Linear))
    return first.weight.rpartition(".")[0]


def unique_bytes(stored: Path) -> float:
    """The bytes of a weights file, floats as float16 and indices as 4 bits."""
    sizes = {"float32": 2.0, "float16": 2.0, "uint8": 1.0}
    return sum(
        (0.5 if name.endswith(".indices") else sizes[array.dtype.name]) * array.size
        for name, array in load_file(stored).items()
    )


@pytest.mark.parametrize(
    ("quant", "group_size"), [("int4", 32), ("int4", 64), ("int8", 32), ("int8-channel", 32)]
)
def test_codes_and_scales_are_those_of_quant(
    quant: str,
    group_size: int,
    packaged: Callable[..., Bundle],
    reading: Callable[[str], Reading],
    tmp_path: Path,
) -> None:
    recipe = Recipe.named(quant, group_size)
    write_weights(reading("ouro"), recipe, tmp_path / "stored")
    stored = load_file(tmp_path / "stored")
    package = package_of(packaged("ouro", quant, group_size))
    blobs = Blobs(package / WEIGHTS)
    block = read_model(package).mlProgram.functions["decode_d1"].block_specializations["CoreML8"]
    found = {}
    for op in block.operations:
        if op.type == "constexpr_blockwise_shift_scale":
            pair = [blob(blobs, op.inputs[side].arguments[0].value) for side in ("data", "scale")]
            found[tuple(pair[0].shape), len(found)] = pair
    codes = stored["segments.0.layers.0.down_proj.codes"]
    wanted = around_zero(codes, recipe.bits).reshape(len(codes), -1)
    scales = stored["segments.0.layers.0.down_proj.scales"]
    matches = [pair for pair in found.values() if pair[0].shape == wanted.shape and (pair[0] == wanted).all()]
    assert len(matches) == 1
    np.testing.assert_array_equal(matches[0][1], scales)
    assert matches[0][1].dtype == np.float16


def test_weights_are_stored_once(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("mor-middle-cycle")
    model, offsets = read_model(package_of(bundle)), {}
    for name, function in model.mlProgram.functions.items():
        for op in function.block_specializations["CoreML8"].operations:
            if op.type == "constexpr_blockwise_shift_scale":
                offsets.setdefault(op.inputs["data"].arguments[0].value.blobFileValue.offset, set()).add(name)
    # The matrices of 4 stored layers, in 4 pieces each, another one where K and V are wanted by themselves (in all
    # layers but the first), and the embedding, which is the head's too.
    assert len(offsets) == 4 * 4 + 3 + 1
    assert {"prefill", "decode_all", "embed", "head"} in offsets.values()
    looped = {"prefill", "decode_all", "decode_d0", "decode_d1", "decode_d2"}
    assert looped in offsets.values()
    assert looped | {"kvfill_d0", "kvfill_d1"} in offsets.values()


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}/ane" for kind in PALETTIZED)])
def test_weight_bin_is_the_unique_weights(
    kind: str, packaged: Callable[..., Bundle], reading: Callable[[str], Reading], tmp_path: Path
) -> None:
    kind, _, ane = kind.partition("/")
    write_weights(
        reading(kind), Recipe.palettes() if ane else Recipe.named(KINDS[kind], 32), tmp_path / "stored"
    )
    bundle = packaged(kind, ane=bool(ane))
    found = weight_bytes((package_of(bundle) / WEIGHTS).read_bytes(), PackagePlan(bundle.program))
    left_out = 0
    if bundle.program.shares_kv:  # the deltas of the deeper depths' keys and values, float16
        for name, delta in deltas(bundle.program).items():
            if name.endswith(("k_proj", "v_proj")):
                left_out += 2 * (bundle.program.depths - 1) * delta.rank * (64 + 32)
    assert found == unique_bytes(tmp_path / "stored") - left_out


@pytest.mark.parametrize("recipe", [Recipe.named("int4", 32), Recipe.palettes()], ids=["int4", "palettes"])
def test_weight_bin_of_the_demo_model(recipe: Recipe, tmp_path: Path) -> None:
    reading = read(DEMO)
    write_weights(reading, recipe, tmp_path / "stored")
    package = tmp_path / "model.mlpackage"
    plan = PackagePlan(reading.program)
    write_package(
        plan, Store(tmp_path / "stored", recipe, plan.program), package, {}, lambda name, part: None
    )
    # The whole file, whatever is in it.
    wanted = unique_bytes(tmp_path / "stored") + table_bytes(plan)
    assert 0.98 < (package / WEIGHTS).stat().st_size / wanted < 1.02


@pytest.mark.parametrize("kind", PALETTIZED)
def test_palettized_weights(
    kind: str, packaged: Callable[..., Bundle], reading: Callable[[str], Reading], tmp_path: Path
) -> None:
    bundle = packaged(kind, ane=True)
    target = bundle.manifest.targets["coreml"]
    assert 0 < max(target.parity.per_depth) <= EXACT
    assert EXACT < target.parity.shipped <= SHIPPED
    package = target.details_as(Package)
    assert package is not None
    assert package.palettized
    assert package.functions["decode_d0"] == package.functions["prefill"] == "cpuAndNeuralEngine"
    assert package.functions["embed"] == "cpuOnly"
    assert (bundle.manifest.quantization.scheme, bundle.manifest.quantization.bits) == ("palette4", 4)
    function = read_model(package_of(bundle)).mlProgram.functions["decode_d0"]
    operations = function.block_specializations["CoreML8"].operations
    kinds = [op.type for op in operations]
    assert kinds.count("constexpr_lut_to_dense") >= 5
    assert "constexpr_blockwise_shift_scale" not in kinds
    write_weights(reading(kind), Recipe.palettes(), tmp_path / "stored")
    stored, blobs = load_file(tmp_path / "stored"), Blobs(package_of(bundle) / WEIGHTS)
    name = f"{stem_of_layer(bundle)}.down_proj"
    wanted, tables = (stored[f"{name}.{side}"] for side in ("indices", "tables"))
    pairs = [
        [blob(blobs, op.inputs[side].arguments[0].value) for side in ("indices", "lut")]
        for op in operations
        if op.type == "constexpr_lut_to_dense"
    ]
    matches = [pair for pair in pairs if np.array_equal(pair[0], wanted)]
    assert len(matches) == 1
    np.testing.assert_array_equal(matches[0][1][:, 0, :, 0], tables)


def test_palettized_weights_are_refused_where_they_do_not_fit(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for given, message in (
        ({"targets": ["onnx"]}, "--coreml-ane, but the target is onnx; add --target coreml"),
        (
            {"targets": ["coreml"], "quant": "int8"},
            "4-bit indices into tables, not as int8; wanted --quant int4",
        ),
        ({"targets": ["coreml"], "quant": "none"}, "not as none; wanted --quant int4"),
    ):
        with pytest.raises(UsageError, match=message):
            export_bundle(checkpoint("edgeloop"), tmp_path / "refused", options={"coreml_ane": True}, **given)
    assert not (tmp_path / "refused").exists()


def test_palettes_that_are_fitted_to_a_text(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``quantize`` with a recipe of tables, ended on the way and taken up, makes what ``--calibrate`` makes."""
    folder, text = checkpoint("edgeloop"), "Once upon a time there was a king who had a daughter. " * 8
    (tmp_path / "mine.toml").write_text('[[rules]]\nmatch = "*"\nbits = 4\ngroup = "table"\n')
    recipe, fitted, left = read_recipe(tmp_path / "mine.toml"), loop_gptq.fitted_palette, 2

    def some(*given: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return fitted(*given)

    monkeypatch.setattr(loop_gptq, "fitted_palette", some)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(folder, text, tmp_path / "codes", recipe=recipe)
    left = 100
    made = quantize_checkpoint(folder, text, tmp_path / "codes", recipe=recipe)
    assert made.resumed == 2
    assert len(made.codes.about.matrices) == 102 - left  # each is fitted once
    words = {"targets": ["coreml"], "options": {"coreml_ane": True}}
    one = export_bundle(folder, tmp_path / "one", calibration=text, **words)
    other = export_bundle(folder, tmp_path / "other", codes=tmp_path / "codes", targets=["coreml"])
    assert one.manifest.quantization == structs.replace(other.manifest.quantization, scheme="palette4")
    assert one.manifest.quantization.tables
    nearest = export_bundle(folder, tmp_path / "nearest", **words)
    found, same, before = (
        palettes_of(package_of(Bundle.open(each.bundle))) for each in (one, other, nearest)
    )
    assert len(found) == len(before)
    for (indices, tables), (again, theirs) in zip(found, same, strict=True):
        np.testing.assert_array_equal(indices, again)
        np.testing.assert_array_equal(tables, theirs)
    assert all(not np.array_equal(a, b) for (a, _), (b, _) in zip(found, before, strict=True))
    stored = made.codes.of(read(folder))
    for name, palette in stored.items():  # rows of a matrix may lie in the package by its parts
        assert isinstance(palette, Palette)
        rows = {
            row.tobytes()
            for indices, _ in found
            if indices.shape[1] == palette.indices.shape[1]
            for row in indices
        }
        assert {row.tobytes() for row in palette.indices} <= rows, name
    with pytest.raises(
        UsageError, match="--coreml-ane stores weights as 4-bit indices into tables, not as mine"
    ):
        export_bundle(folder, tmp_path / "b", codes=tmp_path / "codes", **words)
    with pytest.raises(
        ExportError, match="mine has matrices in tables of values, which target onnx does not"
    ):
        export_bundle(folder, tmp_path / "b", codes=tmp_path / "codes")
    quantize_checkpoint(folder, text, tmp_path / "int4", recipe=Recipe.named("int4", 32))
    with pytest.raises(
        UsageError, match="int4 has 4 bits in groups of 32, and target coreml is to have 4 bits in"
    ):
        export_bundle(folder, tmp_path / "b", codes=tmp_path / "int4", **words)
    assert not (tmp_path / "b").exists()


def test_tables_beside_codes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """An embedding in 8 bits, all else in tables: ``show`` says what is how, in how many bits."""
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[rules]]\nmatch = "embed"\nbits = 8\ngroup = "channel"\n[[rules]]\nmatch = "*"\nbits = 4\ngroup = "table"\n'
    )
    assert read_recipe(path).rules[1].storage == TABLES
    made = export_bundle(checkpoint("edgeloop"), tmp_path / "b", targets=["coreml"], recipe=path)
    kinds = {kind.storage: kind for kind in stored_kinds(made.manifest)}
    assert kinds.keys() == {"8 bits with a scale a row", "4 bits in tables"}
    sizes = [
        (indices.size, tables.size)
        for indices, tables in palettes_of(package_of(Bundle.open(tmp_path / "b")))
    ]
    indices, tables = (sum(each) for each in zip(*sizes, strict=True))
    assert kinds["4 bits in tables"].weights == indices
    assert kinds["4 bits in tables"].bits_per_weight == pytest.approx((4 * indices + 16 * tables) / indices)
