"""The operators that the ONNX graphs of a bundle are made of; a graph with any other one is not opened.

None of them runs a graph inside of itself, calls a function of the model, or reads anything but its inputs.
"""

from __future__ import annotations

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

OPERATORS = frozenset(
    {
        ("", name)
        for name in (
            "Abs", "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Exp", "Expand", "Gather",
            "GatherElements", "Gelu", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual",
            "MatMul", "Max", "Min", "Mul", "OneHot", "Or", "Pad", "QuantizeLinear", "Range", "ReduceMax", "ReduceSum",
            "Relu", "Reshape", "Shape", "Sigmoid", "SimplifiedLayerNormalization", "Slice", "Softmax", "Softplus",
            "Split", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where",
        )
    }
    | {
        (MICROSOFT, name)
        for name in (
            "GatherBlockQuantized", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits", "RotaryEmbedding",
            "SkipSimplifiedLayerNormalization",
        )
    }
)  # fmt: skip
"""(domain, operator) of all that may occur; ``SimplifiedLayerNormalization`` is ONNX Runtime's, in ONNX's domain."""
