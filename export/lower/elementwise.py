"""Norms, activations and arithmetic of rows, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ...runtime.engines.onnx.operators import MICROSOFT
from ...runtime.model.ops import Act, Add, Concat, Function, Mul, Norm, Scale, Slice, Softcap
from .depths import fresh_rows, vector
from .fresh import FreshRows
from .graph import Graph, StageValue
from .values import PendingSum, Values


def norm(graph: Graph, values: Values, op: Norm) -> None:
    """Write RMSNorm or LayerNorm, with the addition before it where that is still pending.

    The operators take one weight for all lanes: weights of a lane's depth are multiplied afterwards.
    """
    size = values.size(op.x) // op.groups
    weight, by_lane = (None, False) if op.weight is None else vector(graph, op.weight, op.at)
    gamma = _ones(graph, size) if weight is None or by_lane else weight
    bias, bias_by_lane = (None, False) if op.bias is None else vector(graph, op.bias, op.at)
    added, x = values.pending(op.x), None
    if op.kind == "rms" and op.groups == 1 and isinstance(added, PendingSum):
        a, b = values[added.a], values[added.b]
        y, _, _, total = graph.node(
            "SkipSimplifiedLayerNormalization", a.value, b.value, gamma,
            domain=MICROSOFT, outputs=4, epsilon=op.eps,
        )  # fmt: skip
        x = values[op.x] = StageValue(total, a.size, a.fresh)
    else:
        x = values[op.x]
        y = x.value if op.groups == 1 else graph.reshaped(x.value, op.groups, size)
        if op.kind == "rms":
            y = graph.one("SimplifiedLayerNormalization", y, gamma, axis=-1, epsilon=op.eps, stash_type=1)
        else:
            inside = None if by_lane or bias_by_lane else bias
            y = graph.one(
                "LayerNormalization", y, gamma, *[inside] if inside else [], axis=-1, epsilon=op.eps
            )
            bias = None if inside else bias
    if by_lane:
        y = graph.one("Mul", y, _by_group(graph, weight, op))
    if bias is not None:
        y = graph.one("Add", y, _by_group(graph, bias, op) if bias_by_lane else bias)
    if op.groups > 1:
        y = graph.reshaped(y, x.size)
    values[op.y] = StageValue(y, x.size, x.fresh)


def act(graph: Graph, x: ir.Value, function: Function) -> ir.Value:
    """Return ``function`` of x, elementwise."""
    return _ACTS[function](graph, x)


def acted(graph: Graph, values: Values, op: Act) -> None:
    """Write an activation."""
    x = values[op.x]
    values[op.y] = StageValue(act(graph, x.value, op.function), x.size, x.fresh)


def add(graph: Graph, values: Values, op: Add) -> None:
    """Record a + b, which a norm may do."""
    values[op.y] = PendingSum(op.a, op.b)


def mul(graph: Graph, values: Values, op: Mul) -> None:
    """Write a · b; where b is shorter, each of its numbers is for one of the equal parts of a."""
    a, b = values[op.a], values[op.b]
    if b.size in (1, a.size):
        y = graph.one("Mul", a.value, b.value)
    else:
        parts = graph.reshaped(a.value, b.size, a.size // b.size)
        y = graph.one("Mul", parts, graph.one("Unsqueeze", b.value, graph.numbers(-1)))
        y = graph.reshaped(y, a.size)
    values[op.y] = StageValue(y, a.size, a.fresh)


def scale(graph: Graph, values: Values, op: Scale) -> None:
    """Write factor · x · w + offset."""
    x = values[op.x]
    y = x.value
    if op.weight is not None:
        y = graph.one("Mul", y, vector(graph, op.weight, op.at)[0])
    if op.factor != 1 or (op.weight is None and not op.offset):
        y = graph.one("Mul", y, graph.number(op.factor))
    if op.offset:
        y = graph.one("Add", y, graph.number(op.offset))
    values[op.y] = StageValue(y, x.size, x.fresh)


def softcap(graph: Graph, values: Values, op: Softcap) -> None:
    """Write cap · tanh(x / cap)."""
    x = values[op.x]
    values[op.y] = StageValue(capped(graph, x.value, op.cap), x.size, x.fresh)


def capped(graph: Graph, x: ir.Value, cap: float) -> ir.Value:
    """Return cap · tanh(x / cap)."""
    return graph.one("Mul", graph.one("Tanh", graph.one("Div", x, graph.number(cap))), graph.number(cap))


def concat(graph: Graph, values: Values, op: Concat) -> None:
    """Write the concatenation of values."""
    parts = [values[name] for name in op.x]
    joined = graph.one("Concat", *(part.value for part in parts), axis=-1)
    values[op.y] = StageValue(joined, sum(part.size for part in parts), parts[0].fresh)


def cut(graph: Graph, values: Values, op: Slice) -> None:
    """Write some columns of a value."""
    x = values[op.x]
    bounds = graph.numbers(op.start), graph.numbers(op.stop), graph.numbers(-1)
    values[op.y] = StageValue(graph.one("Slice", x.value, *bounds), op.stop - op.start, x.fresh)


def fresh(graph: Graph, values: Values, op: FreshRows) -> None:
    """Write the rows that get new K/V."""
    x = values[op.x]
    values[op.y] = StageValue(fresh_rows(graph, x.value), x.size, fresh=True)


def _by_group(graph: Graph, numbers: ir.Value | None, op: Norm) -> ir.Value:
    """Return [B, 1, n] numbers of each lane, repeated for every group."""
    assert numbers is not None
    return graph.one("Unsqueeze", numbers, graph.numbers(1)) if op.groups > 1 else numbers


def _ones(graph: Graph, size: int) -> ir.Value:
    one = ir.tensor(np.ones(1, np.float32))
    return graph.once(("ones", size), lambda: graph.one("ConstantOfShape", graph.numbers(size), value=one))


def _relu2(graph: Graph, x: ir.Value) -> ir.Value:
    positive = graph.one("Relu", x)
    return graph.one("Mul", positive, positive)


_ACTS: Mapping[Function, Callable[[Graph, ir.Value], ir.Value]] = {
    "silu": lambda graph, x: graph.one("Mul", x, graph.one("Sigmoid", x)),
    "gelu": lambda graph, x: graph.one("Gelu", x),
    "gelu_tanh": lambda graph, x: graph.one("Gelu", x, approximate="tanh"),
    "relu2": _relu2,
    "sigmoid": lambda graph, x: graph.one("Sigmoid", x),
    "tanh": lambda graph, x: graph.one("Tanh", x),
    "softplus": lambda graph, x: graph.one("Softplus", x),
    "exp": lambda graph, x: graph.one("Exp", x),
    "relu": lambda graph, x: graph.one("Relu", x),
}
