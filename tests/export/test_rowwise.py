"""8-bit matrices with a scale a row, in ONNX Runtime: the integers that were meant, whatever else is in the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeloop.export import rowwise
from edgeloop.quant.pack import quantize
from edgeloop.runtime.backend import Lanes
from edgeloop.runtime.backends import open_backend
from edgeloop.runtime.bundle import Bundle
from edgeloop.runtime.onnx_session import open_session, use_threads
from edgeloop.runtime.packed import PackedLanes

Bundles = Callable[..., Path]
ROWS, COLUMNS = 24, 40
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
PACKED = quantize(WEIGHT, 8, 0)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(PACKED.codes).flatten(1))
        self.register_buffer("scales", torch.from_numpy(PACKED.scales))

    def forward(self, x: Tensor) -> Tensor:
        return rowwise.matmul(x, self.get_buffer("codes"), self.get_buffer("scales"))


@pytest.fixture(scope="module")
def product() -> onnx.ModelProto:
    x = torch.zeros(3, 2, COLUMNS)
    free = {0: torch.export.Dim("B", min=1, max=64)}
    program = torch.onnx.export(Product().eval(), (x,), dynamo=True, dynamic_shapes=(free,), verbose=False)
    assert program is not None
    return program.model_proto


def run(model: onnx.ModelProto, x: np.ndarray, folder: Path) -> np.ndarray:
    onnx.save(model, folder / "model.onnx")
    use_threads(None)  # a process has one pool, which other tests may have made
    session = open_session(folder / "model.onnx")
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_products_are_those_of_the_rounded_activations(product: onnx.ModelProto, tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((3, 2, COLUMNS)).astype(np.float32) * 3
    x[1, 1] = 0  # padding
    peak = np.abs(x).max(-1, keepdims=True)
    whole = np.rint(np.divide(x, peak, out=np.zeros_like(x), where=peak > 0) * np.float32(127))
    wanted = (whole * peak / 127) @ PACKED.values().T.astype(np.float64)
    found = run(product, x, tmp_path)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert not found[1, 1].any()


def test_the_float_form_is_the_module(product: onnx.ModelProto, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((3, 2, COLUMNS)).astype(np.float32)
    model = onnx.ModelProto()
    model.CopyFrom(product)
    rowwise.to_float(model.graph)
    assert not {"QuantizeLinear", "MatMulIntegerToFloat"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, x, tmp_path), Product()(torch.from_numpy(x)).numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["mor-lora", "ouro"])
def test_a_token_does_not_depend_on_the_others_of_its_call(exported: Bundles, kind: str) -> None:
    bundle = Bundle.open(exported(kind, "int8-channel"))
    plain, packed = (open_backend("onnx", bundle, None, packed=packed) for packed in (False, True))
    program, n = plain.program, plain.program.depths
    state = np.random.default_rng(4).standard_normal((n, 1, program.width)).astype(np.float32)

    def lanes(first: int, count: int) -> tuple[np.ndarray, ...]:
        depth = np.arange(first, first + count)
        return depth, np.zeros(count, np.int32), np.ones(count, np.int32), np.zeros((count, 1), np.int64)

    cache = plain.new_cache(1, 4)
    together = plain.block(state, Lanes(*lanes(0, n)), cache).copy()
    among = packed.block(state, PackedLanes(*lanes(0, n)), packed.new_cache(1, 4))
    np.testing.assert_array_equal(among, together)
    for depth in range(n):
        alone = plain.block(state[depth : depth + 1], Lanes(*lanes(depth, 1), first_slot=depth), cache)
        np.testing.assert_array_equal(alone[0], together[depth])
