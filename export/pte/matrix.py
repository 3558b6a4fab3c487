"""Matrices and norms as XNNPACK takes them: our codes bit for bit, int8 activations with a scale for each row.

XNNPACK holds an int4 matrix in groups (8da4w) with bfloat16 scales, an int8 matrix with one float32 scale a row
(8da8w). quant/pack.py rounds scales to bfloat16 before it chooses codes, so nothing is rounded again here.

M rows (tokens) of a call, D width, N outputs, K inputs, G group size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
    IntxUnpackedToInt8TensorActivationQuantization,
)

from ...runtime.model.codec import around_zero

Weights = Mapping[str, Tensor]
"""The stored tensors of a model, by name."""

_ROWS = IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN


class Matrix(nn.Module):
    """x [M, K] → [M, N] through the stored matrix ``name``, or its rows ``rows``."""

    def __init__(self, weights: Weights, name: str, bits: int, rows: slice = slice(None)) -> None:
        super().__init__()
        if bits == 32:
            self.weight = nn.Parameter(weights[f"{name}.weight"][rows], requires_grad=False)
        else:
            codes, scales = weights[f"{name}.codes"][rows], weights[f"{name}.scales"][rows]
            self.weight = nn.Parameter(quantized(codes, scales, bits), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.linear(x, self.weight)
        return y


def quantized(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """codes [N, K/G, G·bits/8] uint8, scales [N, K/G] → the tensor that lowering takes for a matrix [N, K]."""
    signed = torch.from_numpy(around_zero(codes.numpy(), bits))
    tensor: Tensor = IntxUnpackedToInt8Tensor(
        qdata=signed.flatten(1),
        scale=scales.float(),
        zero_point=torch.zeros_like(scales, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{bits}"),  # torch's stubs have no int4
        block_size=(1, signed.shape[-1]),
        dtype=torch.float32,
        activation_quantization=_ROWS,
    )
    return tensor


@contextmanager
def float_activations(model: nn.Module) -> Iterator[None]:
    """Inputs of quantized matrices stay floats when the module itself is called."""
    weights = [m.weight for m in model.modules() if isinstance(m, Matrix)]
    quantized = [w for w in weights if isinstance(w, IntxUnpackedToInt8Tensor)]
    for weight in quantized:
        weight.activation_quantization = None
    try:
        yield
    finally:
        for weight in quantized:
            weight.activation_quantization = _ROWS


class Norm(nn.Module):
    """RMSNorm of x [M, D]. The mean is a matrix product: XNNPACK takes no mean over the last of two axes."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        width = weight.shape[-1]
        self.register_buffer("mean", torch.full((1, width), 1 / width))
        self.register_buffer("eps", torch.full((1,), eps))
        self.per_depth = weight.ndim == 2
        # [R, D] → [D, R], a matrix whose product with one-hot depths picks rows: a gather is not delegated.
        self.register_buffer("weight", weight.t().contiguous() if self.per_depth else weight)

    def forward(self, x: Tensor, depth: Tensor | int | None) -> Tensor:
        """``depth``: one-hot [M, R], or the number of a repeat."""
        weight = self.get_buffer("weight")
        if self.per_depth:
            assert depth is not None
            weight = weight[:, depth] if isinstance(depth, int) else F.linear(depth, weight)
        return x * torch.rsqrt(F.linear(x * x, self.get_buffer("mean"), self.get_buffer("eps"))) * weight


class Delta(nn.Module):
    """One projection's LoRA: x [M, in] → [M, out], for each row that of its depth.

    All depths' A are one matrix, and the columns of other depths are masked: rows of any depth ride in one call.
    """

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        a, b = weights[f"{name}.lora_a"].float(), weights[f"{name}.lora_b"].float()
        self.rank = a.shape[1]
        self.register_buffer("a", a.flatten(0, 1))  # [R·r, in]
        self.register_buffer("b", b.permute(1, 0, 2).flatten(1).contiguous())  # [out, R·r]

    def forward(self, x: Tensor, depth: Tensor | int | None, columns: dict[int, Tensor]) -> Tensor:
        """``depth`` as in Norm. ``columns``: by rank, which columns [M, R·r] each row's depth has."""
        a, b = self.get_buffer("a"), self.get_buffer("b")
        if isinstance(depth, int):
            own = slice(depth * self.rank, (depth + 1) * self.rank)
            return F.linear(F.linear(x, a[own]), b[:, own])
        return F.linear(F.linear(x, a) * columns[self.rank], b)
