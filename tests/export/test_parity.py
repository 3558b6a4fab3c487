"""The parity step: quiet where both sides compute the same, and exact about where they do not."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeloop.export.bounds import EXACT, activations_of, difference
from edgeloop.export.family import Reading
from edgeloop.export.lower.onnx import write_graphs
from edgeloop.export.parity import CHUNKS, Expected, trace
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.export.targets.onnx.target import check_parity
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.engines.onnx.engine import OnnxBackend
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ParityError
from edgeloop.runtime.model.activations import ACTIVATIONS, Activations

Oracles = Callable[..., ReferenceBackend]
PACKED = ("prologue.packed", "block.packed", "epilogue.packed")
STAGES = ("prologue", "block", "fill", "epilogue", *PACKED)
BLOCKS = ACTIVATIONS["MatMulNBits"]


def altered(
    reading: Reading, path: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> ReferenceBackend:
    """The oracle over changed weights."""
    recipe = Recipe.named("none", 32)
    write_weights(reading, recipe, path)
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(weights)
    path.unlink()
    save_file(weights, path)
    return reference_engine(reading.program, path, recipe)


def exact(model: ReferenceBackend) -> Expected:
    """What ``model`` gives, and no bit less."""
    expected = Expected.of(model)
    return replace(expected, bounds=[0.0] * len(expected.bounds))


@pytest.mark.parametrize("kind", ["mor-lora", "mobilellm", "ouro"])
def test_an_oracle_agrees_with_itself(oracle: Oracles, kind: str) -> None:
    model = oracle(kind)
    first = trace(model)
    assert len(first.per_depth) == model.program.depths
    assert first.logits.shape == (sum(CHUNKS), model.program.vocab_size)
    assert first.mixed.shape == (model.program.depths, 1, model.program.width)
    per_depth, logits = exact(model).check("reference", oracle(kind))
    assert per_depth == (0.0,) * model.program.depths
    assert logits == 0.0


@pytest.mark.parametrize("context", [1, 2, 5, 14, 10_000_000])
def test_any_context(oracle: Oracles, context: int) -> None:
    """Short ones have room for fewer tokens; long ones must not cost memory."""
    model = oracle("mor-middle-cycle")
    model.program = msgspec.structs.replace(model.program, context_length=context)
    found = trace(model)
    assert len(found.logits) == max(1, min(sum(CHUNKS), context - 1))
    exact(model).check("reference", model)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("segments.0.layers.0.o_proj.weight", None, "the state after depth 0"),
        ("segments.1.layers.1.q_proj.lora_b", 0, "the state after depth 0"),
        ("segments.1.layers.0.q_proj.lora_b", 2, "the state after depth 2"),
        ("segments.1.layers.0.down_proj.lora_a", 1, "the state after depth 1"),
        ("segments.2.layers.0.down_proj.weight", None, "the logits"),
        ("norm.weight", None, "the logits"),
    ],
)
def test_the_first_wrong_place_is_named(
    oracle: Oracles,
    reading: Callable[[str], Reading],
    tmp_path: Path,
    name: str,
    row: int | None,
    message: str,
) -> None:
    def scale(weights: dict[str, torch.Tensor]) -> None:
        weights[name][slice(None) if row is None else row] *= 1.5

    other = altered(reading("mor-lora"), tmp_path / "w.safetensors", scale)
    with pytest.raises(ParityError, match=f"onnx disagrees with the reference engine in {message}: "):
        Expected.of(oracle("mor-lora")).check("onnx", other)


def test_lanes_that_take_each_others_depth_are_found(oracle: Oracles) -> None:
    """Right for calls of one lane, wrong when depths are mixed."""
    model, wanted = oracle("mor-lora"), Expected.of(oracle("mor-lora"))

    class Confused(ReferenceBackend):
        def block(self, state, lanes, cache):  # type: ignore[no-untyped-def]
            return super().block(
                state, replace(lanes, depth=np.full_like(lanes.depth, lanes.depth[0])), cache
            )

    model.__class__ = Confused
    with pytest.raises(ParityError, match="a call of mixed depths"):
        wanted.check("onnx", model)


def test_difference() -> None:
    a = np.array([1.0, -4.0], np.float32)
    assert difference(a, a) == 0
    assert difference(a + 0.5, a) == 0.125
    assert difference(np.array([1.0, np.nan], np.float32), a) == float("inf")
    assert difference(a, np.array([1.0, np.inf], np.float32)) == float("inf")
    assert difference(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0


def test_nan_is_a_disagreement(oracle: Oracles) -> None:
    class Nothing(ReferenceBackend):
        def epilogue(self, state, rows, lanes, cache):  # type: ignore[no-untyped-def]
            return super().epilogue(state, rows, lanes, cache) * np.float32(np.nan)

    model, wanted = oracle("mor-lora"), Expected.of(oracle("mor-lora"))
    model.__class__ = Nothing
    with pytest.raises(ParityError, match="the logits: inf relative"):
        wanted.check("onnx", model)


@pytest.fixture
def graphs(exported: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of the graphs and weights of a bundle, to be damaged."""
    shutil.copytree(exported("mor-lora", "int4") / "onnx", tmp_path / "onnx")
    return {stage: tmp_path / "onnx" / f"{stage}.onnx" for stage in STAGES}


def change_attribute(path: Path, operator: str, name: str, value: int | float) -> None:
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name) == (operator, name):
                setattr(attribute, "f" if isinstance(value, float) else "i", value)
    onnx.save(model, path)


def test_whole_graphs_pass(oracle: Oracles, graphs: dict[str, Path]) -> None:
    parity = check_parity(oracle("mor-lora", "int4"), graphs, BLOCKS)
    assert max(*parity.per_depth, parity.logits) < 1e-5
    assert parity.shipped <= parity.bound
    assert EXACT < parity.bound < 0.3
    assert {p.name for p in graphs["block"].parent.glob("*.onnx")} == {f"{s}.onnx" for s in STAGES}


@pytest.mark.parametrize("quant", ["int4", "int8", "int8-channel"])
def test_int8_activations_are_those_of_the_kernels(
    oracle: Oracles, exported: Callable[..., Path], quant: str
) -> None:
    """K and V that are filled in are behind one rounding only: much nearer to the reference that rounds."""
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or (flags.exists() and "avx2" not in flags.read_text().split()):
        pytest.skip("ONNX Runtime rounds activations in these ways on x86-64 with AVX2")
    model, recipe = oracle("mor-lora", quant), Recipe.named(quant, 32)
    folder = exported("mor-lora", quant) / "onnx"
    shipped = trace(OnnxBackend(model.program, {stage: folder / f"{stage}.onnx" for stage in STAGES}))
    near, far = (
        difference(shipped.filled, trace(other).filled)
        for other in (model.with_activations(activations_of(recipe, "onnx")), model)
    )
    assert far > 1e-3
    assert near < far / 2


def test_kernels_that_compute_something_else_are_found(oracle: Oracles, graphs: dict[str, Path]) -> None:
    """Graphs whose int8 kernels, only, are of another kind than what is wanted of them."""

    def five_bits(x, group_size, whole):  # type: ignore[no-untyped-def]
        step = np.abs(x).max() / 15
        return whole(x / step) * step

    model = oracle("mor-lora", "int4")
    expected = Expected.of(model, Activations(five_bits))
    expected = replace(expected, bounds=Expected.of(model, BLOCKS).bounds)
    packed = OnnxBackend(model.program, graphs, packed=True)
    with pytest.raises(ParityError, match="onnx disagrees .*; the bundle was not written, export on another"):
        expected.check("onnx", OnnxBackend(model.program, graphs), packed, "export on another")


@pytest.mark.parametrize(
    ("stage", "operator", "name", "value", "message"),
    [
        ("prologue", "SimplifiedLayerNormalization", "epsilon", 0.5, "the state after depth 0"),
        ("block", "GroupQueryAttention", "do_rotary", 0, "the state after depth 0"),
        ("block", "SkipSimplifiedLayerNormalization", "epsilon", 0.5, "the state after depth 0"),
        ("epilogue", "SimplifiedLayerNormalization", "epsilon", 0.5, "the logits"),
    ],
)
def test_changed_graphs_do_not_pass(
    oracle: Oracles,
    graphs: dict[str, Path],
    stage: str,
    operator: str,
    name: str,
    value: int | float,
    message: str,
) -> None:
    change_attribute(graphs[stage], operator, name, value)
    with pytest.raises(
        ParityError, match=f"onnx with float activations disagrees with the reference engine in {message}"
    ):
        check_parity(oracle("mor-lora", "int4"), graphs, BLOCKS)


@pytest.mark.parametrize("stage", PACKED)
def test_a_changed_packed_graph_does_not_pass(oracle: Oracles, graphs: dict[str, Path], stage: str) -> None:
    change_attribute(graphs[stage], "GroupQueryAttention", "do_rotary", 0)
    with pytest.raises(ParityError, match="onnx with float activations disagrees .* in packed lanes"):
        check_parity(oracle("mor-lora", "int4"), graphs, BLOCKS)


def test_changed_weights_do_not_pass(oracle: Oracles, graphs: dict[str, Path]) -> None:
    path = graphs["block"].with_name("weights.safetensors")
    name = "segments.1.layers.1.down_proj.codes"
    offset = path.read_bytes().index(load_file(path)[name].numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(64))
    with pytest.raises(ParityError, match="the state after depth 0"):
        check_parity(oracle("mor-lora", "int4"), graphs, BLOCKS)


def test_an_export_without_parity_writes_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args, **options):  # type: ignore[no-untyped-def]
        paths = write_graphs(*args, **options)
        change_attribute(paths["block"], "GroupQueryAttention", "do_rotary", 0)
        return paths

    monkeypatch.setattr("edgeloop.export.targets.onnx.target.write_graphs", wrong)
    with pytest.raises(ParityError, match="the bundle was not written"):
        export_bundle(checkpoint("mor-lora"), tmp_path / "bundle", quant="int8")
    assert list(tmp_path.iterdir()) == []
