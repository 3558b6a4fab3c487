"""8-bit matrices with one scale a row, and activations that are quantized token by token.

ONNX Runtime multiplies them in integers, and so a token's result does not depend on what else is in the call, bit for
bit. Its integer kernel also reads the weights once for several tokens, which MatMulNBits does not: on two cores with
AVX2 three tokens cost 1.1 to 1.3 times as much as one, against 1.6 to 1.8 (4 or 8 bits in groups).

Weights are unsigned on purpose. Where a processor has no dot-product instructions, the kernel for signed ones adds
pairs of products in 16 bits, which overflow.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from .fused import MS, exporting

STEPS, ZERO = 127, 128
"""Activations are whole numbers of 1/127 of a token's largest, stored with an offset of 128, as weights are."""
_SLICE = 8192  # rows that are held in float32 at a time


def matmul(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x [..., K] → [..., N] through codes [N, K] uint8 with scales [N, 1]."""
    if not exporting():
        slices = zip(codes.split(_SLICE), scales.split(_SLICE), strict=True)
        return torch.cat([F.linear(x, _values(c, s)) for c, s in slices], dim=-1)
    peak = x.abs().amax(-1, keepdim=True)  # 0 for padding: then x / peak is anything, and times peak 0 again
    step, zero = torch.tensor(1 / STEPS), torch.tensor(ZERO, dtype=torch.uint8)
    whole = torch.onnx.ops.symbolic(
        "QuantizeLinear", [x / peak, step, zero], dtype=torch.uint8, shape=x.shape
    )
    out: Tensor = torch.onnx.ops.symbolic(
        f"{MS}MatMulIntegerToFloat",
        [whole, codes.t(), step, scales.float().flatten(), zero, zero],
        dtype=x.dtype,
        shape=(*x.shape[:-1], len(codes)),
        version=1,
    )
    return out * peak


def gather(ids: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """ids [B, S] → rows [B, S, K] of a table of codes [V, K] and scales [V, 1]."""
    return _values(codes[ids], scales[ids])


def to_float(graph: onnx.GraphProto) -> None:
    """The same products of float activations, in place: what parity compares with the modules."""
    quantized = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            whole, codes, _, scales, _, _ = node.input
            names = [f"{node.output[0]}.{part}" for part in ("codes", "zero", "centred", "values")]
            zero = onnx.numpy_helper.from_array(np.array(ZERO, np.float32), names[1])
            graph.initializer.append(zero)
            nodes += [
                helper.make_node("Cast", [codes], [names[0]], to=onnx.TensorProto.FLOAT),
                helper.make_node("Sub", [names[0], names[1]], [names[2]]),
                helper.make_node("Mul", [names[2], scales], [names[3]]),
                helper.make_node("MatMul", [quantized[whole].input[0], names[3]], [node.output[0]]),
            ]
        elif node.op_type != "QuantizeLinear":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _values(codes: Tensor, scales: Tensor) -> Tensor:
    return (codes.float() - ZERO) * scales.float()
