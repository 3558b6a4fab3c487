"""Inputs as engines see them: x̂ times the matrix is what the engine itself computes."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgeloop.quant.pack import quantize
from edgeloop.runtime.engines.onnx.session import open_session, use_threads
from edgeloop.runtime.model.activations import ACTIVATIONS, Activations, half_either_way, stochastic
from edgeloop.runtime.model.codec import Grouped

F32 = npt.NDArray[np.float32]
ROWS = 24


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or (flags.exists() and "avx2" not in flags.read_text().split()):
        pytest.skip("ONNX Runtime rounds activations in these ways on x86-64 with AVX2")


def weight(columns: int, bits: int, group: int) -> Grouped:
    values = np.random.default_rng(columns).standard_normal((ROWS, columns)) * 0.05
    return quantize(torch.from_numpy(values.astype(np.float32)), bits, group)


def inputs(columns: int, made: Activations, group: int) -> F32:
    """Rows of zeros, of one sign, with outliers; no value near the middle of two codes, which may round either way."""
    random = np.random.default_rng(columns + group)
    x = random.standard_normal((7, columns)) * np.exp(random.standard_normal((7, columns)))
    x[2] = 0
    x[3], x[4] = np.abs(x[3]), -np.abs(x[4])
    x[5, : columns // 2] = 0
    kept = made(x.astype(np.float32), group)
    return (kept + np.float32(0.5) * (x - kept)).astype(np.float32)


def run(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: F32) -> F32:
    """``y`` of a graph of ``nodes`` with the input ``x``."""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", None]) for name in "xy"]
    held = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "one", shapes[:1], shapes[1:], held)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    use_threads(None)  # as every session of a process
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        onnx.save(model, path)
        found: F32 = open_session(path).run(["y"], {"x": x})[0]
    return found


def product(x: F32, matrix: Grouped) -> npt.NDArray[np.float64]:
    """x times the matrix, as exact as can be."""
    return x.astype(np.float64) @ matrix.values().T.astype(np.float64)


def far_from(found: F32, x: F32, matrix: Grouped) -> float:
    """The largest difference from x times the matrix, as a part of the largest output."""
    wanted = product(x, matrix)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def adding_up(x: F32, matrix: Grouped) -> npt.NDArray[np.float64]:
    """How much each output of MatMulNBits may differ, whatever the order of its sums.

    It multiplies codes with their offset, and adds Σ x·offset·scale with the other sign at the end. So that is the
    size of what is added up, a rounding of 2⁻²⁴ for each group, which are as often up as down. Measured: half of this.
    """
    offsets = replace(matrix, codes=np.zeros_like(matrix.codes))  # all of them −8, or −128
    return 2.0**-24 * (4 + 2 * np.sqrt(matrix.scales.shape[1])) * -product(np.abs(x), offsets)


@pytest.mark.parametrize("columns", [64, 200, 4096])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmulnbits_sees_whole_numbers_of_steps_of_each_group(bits: int, group: int, columns: int) -> None:
    matrix, made = weight(columns, bits, group), ACTIVATIONS["MatMulNBits"]
    x = inputs(columns, made, group)
    keys = {"K": columns, "N": ROWS, "bits": bits, "block_size": group, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **keys)
    constants = {"codes": matrix.codes, "scales": matrix.scales.astype(np.float32)}
    seen = made(x, group)
    found = run([node], constants, x)
    assert (np.abs(found - product(seen, matrix)) <= adding_up(seen, matrix)).all()
    assert far_from(found, x, matrix) > 1e-3
    mixed, alone = seen[:2], run([node], constants, x[:1])  # one row has kernels of its own
    # Measured 1.3e-6 at most.
    assert far_from(found[:2], mixed, matrix) < 4e-6
    assert far_from(alone, mixed[:1], matrix) < 4e-6


@pytest.mark.parametrize("columns", [64, 200, 4096])
def test_graphs_of_a_scale_a_row_see_whole_numbers_of_steps_of_each_token(columns: int) -> None:
    matrix, made = weight(columns, 8, 0), ACTIVATIONS["MatMulIntegerToFloat"]
    x = inputs(columns, made, 0)
    constants = {
        "axis": np.array([-1]),
        "step": np.array(1 / 127, np.float32),
        "zero": np.array(128, np.uint8),
        "codes": np.ascontiguousarray(matrix.codes.reshape(ROWS, columns).T),
        "scales": matrix.scales.astype(np.float32).ravel(),
    }
    whole = ["whole", "codes", "step", "scales", "zero", "zero"]
    nodes = [
        helper.make_node("Abs", ["x"], ["positive"]),
        helper.make_node("ReduceMax", ["positive", "axis"], ["peak"]),
        helper.make_node("Div", ["x", "peak"], ["share"]),
        helper.make_node("QuantizeLinear", ["share", "step", "zero"], ["whole"]),
        helper.make_node("MatMulIntegerToFloat", whole, ["out"], domain="com.microsoft"),
        helper.make_node("Mul", ["out", "peak"], ["y"]),
    ]
    found = run(nodes, constants, x)
    # Products of whole numbers are added exactly; measured 1.2e-7.
    assert far_from(found, made(x, 0), matrix) < 1e-6
    assert far_from(found, x, matrix) > 1e-3


def test_xnnpack_sees_the_range_of_each_row_in_255_steps() -> None:
    made = ACTIVATIONS["XNNPACK"]
    x = np.array([[0.0, 0.0, 0.0], [-1.0, 0.5, 1.55], [2.0, 3.0, 5.1]], np.float32)
    found = made(x, 0)
    np.testing.assert_array_equal(found[0], x[0])
    # −1 … 1.55 is 255 steps of 0.01 and holds all three; 0 … 5.1, with zero in it, has steps of 0.02.
    np.testing.assert_allclose(found[1:], x[1:], atol=1e-6)
    line = np.linspace(-1, 1, 5000, dtype=np.float32)[None]
    assert len(np.unique(made(line, 0))) in (255, 256)
    assert np.abs(made(line, 0) - line).max() <= 1.001 / 255


def test_leading_axes_are_kept() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
    for made in ACTIVATIONS.values():
        found = made(x, 32)
        assert (found.shape, found.dtype) == (x.shape, np.float32)
        np.testing.assert_array_equal(found[1, 2], made(x[1, 2][None], 32)[0])


def test_chance_rounds_what_is_near_the_middle_either_way() -> None:
    steps = np.repeat(np.array([2.0, 2.25, 2.4999, 2.5001, -1.75], np.float32), 4000)

    def means(width: float) -> list[float]:
        rounded = stochastic(np.random.default_rng(0), width)(steps).reshape(5, -1)
        assert set(np.unique(rounded)) <= {-2.0, -1.0, 2.0, 3.0}
        return [float(row.mean()) for row in rounded]

    np.testing.assert_allclose(means(0.5), [2, 2.25, 2.5, 2.5, -1.75], atol=0.03)
    np.testing.assert_allclose(means(0.001), [2, 2, 2.45, 2.55, -2], atol=0.03)
    assert means(1e-5) == [2, 2, 2, 3, -2]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_shaken_inputs_are_off_by_a_step_at_most(name: str) -> None:
    made, random = ACTIVATIONS[name], np.random.default_rng(1)
    x = random.standard_normal((5, 64)).astype(np.float32)
    plain, jittered = made(x, 64), made.jittered(3)(x, 64)
    step = (
        np.ptp(x, axis=1, keepdims=True) / 255 if name == "XNNPACK" else np.abs(x).max(1, keepdims=True) / 127
    )
    # XNNPACK's zero may round either way too.
    assert (np.abs(jittered - x) <= (2.01 if name == "XNNPACK" else 1.01) * step).all()
    assert 0.1 < np.mean(np.abs(jittered - plain) > 0.5 * step) < 0.9
    np.testing.assert_array_equal(made.jittered(3)(x, 64), jittered)
    assert not np.array_equal(made.jittered(4)(x, 64), jittered)


def test_float16_either_way_is_one_of_the_two_numbers_around_a_value() -> None:
    x = np.repeat(np.array([1.0, 1.0003, -3.001, 7e-8, 0.0, 1e6], np.float32), 4000)
    found = half_either_way(np.random.default_rng(0))(x).reshape(6, -1)
    assert (found[0] == 1).all()  # what float16 has stays
    assert (found[4] == 0).all()
    for row, value in zip(found[1:4], (1.0003, -3.001, 7e-8), strict=True):
        near = np.float16(value)
        around = {float(near), *(float(np.nextafter(near, np.float16(way))) for way in (-np.inf, np.inf))}
        assert set(row.tolist()) <= around
        assert len(set(row.tolist())) == 2
        assert row.mean() == pytest.approx(value, abs=0.05 * float(np.spacing(np.abs(near))))
    assert np.isinf(found[5]).all()
