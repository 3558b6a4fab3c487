"""A graph as it ships, but with float32 activations, so that it can be compared with an oracle that rounds nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from .matrices import ZERO

FLOAT_ACTIVATIONS = 1
"""An accuracy level of MatMulNBits."""


def with_float_activations(path: Path) -> Path:
    """Write a copy of the graph that computes in float32, beside it because weights are found relative to it; return
    its path.

    onnxruntime's option mlas.qnbit.force_fp32 would do without a copy, but it leaves 8-bit matrices as they are.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = FLOAT_ACTIVATIONS
    _without_quantization(model.graph)
    copy = path.with_suffix(".float.onnx")
    onnx.save(model, copy)
    return copy


def _without_quantization(graph: onnx.GraphProto) -> None:
    """Replace integer products by products of float activations with dequantized codes, in place."""
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
