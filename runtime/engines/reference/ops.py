"""Every op of a program in plain numpy: a function for each, to be read against its formula (``model/ops.py``).

A function takes the op, the lane, and the values that the op reads, in order, [n, size] each; it returns what the op
writes. Nothing here is shared with what makes an engine's graphs, because those are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model import ops
from ...model.erf import erf
from ...model.ops import Op, kind
from ...model.program import Stage
from ...model.weights import sibling
from .attention import attend, attend_learned, attend_twice, capped, softmax
from .lane import Lane, delta_times, times

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def compute(stage: Stage, lane: Lane, *given: F32 | I64) -> list[F32]:
    """Return the outputs of ``stage`` for its inputs. Values are dropped after their last use."""
    values: dict[str, Any] = dict(zip(stage.inputs, given, strict=True))
    last = {name: op for op in stage.ops for name in ops.reads(op)}
    for op in stage.ops:
        run(op, lane, values)
        for name in set(ops.reads(op)).difference(stage.outputs):
            if last[name] is op:
                del values[name]
    return [values[name] for name in stage.outputs]


def run(op: Op, lane: Lane, values: dict[str, Any]) -> None:
    """Compute ``op`` on ``values``, and add what it writes."""
    found = OPS[kind(op)](op, lane, *(values[name] for name in ops.reads(op)))
    made = found if isinstance(found, list) else [found]
    if lane.results is not None:
        made = [lane.results(value) for value in made]
    values.update(zip(ops.writes(op), made, strict=True))


def embed(op: ops.Embed, lane: Lane, ids: I64) -> F32:
    """Return scale · table[ids]."""
    rows: F32 = lane.weights.rows(op.table, ids) * np.float32(op.scale)
    return rows


def norm(op: ops.Norm, lane: Lane, x: F32) -> F32:
    """Return the RMSNorm or LayerNorm of x, each group by itself."""
    parts = x.reshape(len(x), op.groups, -1)
    if op.kind == "layer":
        parts = parts - parts.mean(-1, keepdims=True)
    y: F32 = parts / np.sqrt((parts * parts).mean(-1, keepdims=True) + np.float32(op.eps))
    if op.weight is not None:
        y = y * lane.row(op.weight, op.at)
    if op.bias is not None:
        y = y + lane.row(op.bias, op.at)
    return y.reshape(x.shape)


def linear(op: ops.Linear, lane: Lane, x: F32) -> list[F32]:
    """Return the parts of W x + b, plus the deltas of the lane's depth."""
    weights, matrix = lane.weights, lane.weights.matrix(op.weight)
    depth = lane.depth if op.at is None else op.at
    parts = list(matrix.parts)[op.first : op.first + len(op.y)]
    skipped = sum(list(matrix.parts.values())[: op.first]) + (depth * matrix.rows if matrix.copies > 1 else 0)
    sizes = [matrix.parts[part] for part in parts]
    product = times(lane, x, op.weight, skipped, skipped + sum(sizes))
    outputs: list[F32] = np.split(product, np.cumsum(sizes)[:-1], axis=1)
    for i, part in enumerate(parts):
        if part in matrix.deltas:
            name = sibling(op.weight, part)
            outputs[i] = outputs[i] + delta_times(
                lane, delta_times(lane, x, f"{name}.lora_a", depth), f"{name}.lora_b", depth
            )
            if matrix.deltas[part].rescaled:
                outputs[i] = outputs[i] * weights.small(f"{name}.lora_scale")[depth]
    if matrix.bias:
        bias = weights.small(f"{op.weight}.bias")[skipped : skipped + sum(sizes)]
        outputs = [y + b for y, b in zip(outputs, np.split(bias, np.cumsum(sizes)[:-1]), strict=True)]
    return outputs


def rotate(op: ops.Rotate, lane: Lane, x: F32) -> F32:
    """Return the heads of x rotated to the tokens' positions."""
    cos, sin = (table[:, None] for table in lane.cos_sin(op.by))  # for every head alike
    heads = x.reshape(len(x), op.heads, -1)
    y, dims = heads.copy(), op.by.dims
    one, two = (
        (slice(0, dims, 2), slice(1, dims, 2)) if op.pairs else (slice(dims // 2), slice(dims // 2, dims))
    )
    y[..., one] = heads[..., one] * cos - heads[..., two] * sin
    y[..., two] = heads[..., two] * cos + heads[..., one] * sin
    return y.reshape(x.shape)


def act(op: ops.Act, lane: Lane, x: F32) -> F32:
    """Return ``op.function`` of x, elementwise."""
    return FUNCTIONS[op.function](x)


def add(op: ops.Add, lane: Lane, a: F32, b: F32) -> F32:
    """Return a + b."""
    return a + b


def mul(op: ops.Mul, lane: Lane, a: F32, b: F32) -> F32:
    """Return a · b; where b is shorter, each of its numbers is for one of the equal parts of a."""
    parts: F32 = a.reshape(*b.shape, -1) * b[..., None]
    return parts.reshape(a.shape)


def scale(op: ops.Scale, lane: Lane, x: F32) -> F32:
    """Return factor · x · w + offset."""
    y: F32 = x * np.float32(op.factor)
    if op.weight is not None:
        y = y * lane.row(op.weight, op.at)
    return y + np.float32(op.offset)


def softcap(op: ops.Softcap, lane: Lane, x: F32) -> F32:
    """Return cap · tanh(x / cap)."""
    return capped(x, op.cap)


def concat(op: ops.Concat, lane: Lane, *x: F32) -> F32:
    """Return the values concatenated."""
    return np.concatenate(x, axis=1)


def cut(op: ops.Slice, lane: Lane, x: F32) -> F32:
    """Return columns ``op.start`` … ``op.stop`` − 1 of x."""
    return x[:, op.start : op.stop]


def shift(op: ops.Shift, lane: Lane, x: F32) -> F32:
    """Return x one row down: the first row is what the lane keeps, or zeros; the last one is kept."""
    before = lane.last_rows.get(op.cache, np.zeros_like(x[:1]))
    lane.last_rows[op.cache] = x[-1:].copy()
    return np.concatenate((before, x[:-1]))


def experts(op: ops.Experts, lane: Lane, x: F32, scores: F32) -> F32:
    """Return the sum of the chosen experts' outputs, each times its share."""
    up, down = lane.weights.matrix(op.up).rows, lane.weights.matrix(op.down).rows
    p = softmax(scores)
    chosen = np.argsort(-p, axis=1, kind="stable")[:, : op.top]
    shares = np.take_along_axis(p, chosen, axis=1)
    if op.renormalised:
        shares = shares / shares.sum(1, keepdims=True)
    y = np.zeros((len(x), down), np.float32)
    for e in np.unique(chosen):
        rows, places = np.nonzero(chosen == e)
        h = times(lane, x[rows], op.up, e * up, (e + 1) * up)
        if op.gated:
            first, second = np.split(h, 2, axis=1)
            h = FUNCTIONS[op.function](first) * second
        else:
            h = FUNCTIONS[op.function](h)
        y[rows] += shares[rows, places, None] * times(lane, h, op.down, e * down, (e + 1) * down)
    return y


def sigmoid(x: F32) -> F32:
    """Return 1 / (1 + exp(−x)); tanh keeps it from overflowing."""
    y: F32 = np.tanh(x * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return y


def gelu(x: F32) -> F32:
    """Return x · Φ(x), with Φ of the normal distribution."""
    below = erf(x * np.float32(0.5**0.5)).astype(np.float32)
    return x * (below + 1) * np.float32(0.5)


def gelu_tanh(x: F32) -> F32:
    """Return x · Φ(x), with Φ approximated by a tanh."""
    return x * sigmoid(np.float32((8 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x))


FUNCTIONS: dict[ops.Function, Callable[[F32], F32]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "exp": np.exp,
    "relu": lambda x: np.maximum(x, 0),
}

OPS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "rotate": rotate,
    "attend": attend,
    "attend_twice": attend_twice,
    "attend_learned": attend_learned,
    "act": act,
    "add": add,
    "mul": mul,
    "scale": scale,
    "softcap": softcap,
    "concat": concat,
    "slice": cut,
    "shift": shift,
    "experts": experts,
}
"""The function of each op, by the op's name in a program."""
