"""Attention as ONNX nodes: the fused operator where it computes what is wanted, standard operators elsewhere.

GroupQueryAttention writes K/V into the caches in place, takes q, k and v as one matrix gives them, and rotates q
and k itself. The standard operators copy the caches, once a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.engines.onnx.operators import MICROSOFT
from ...runtime.errors import ExportError
from ...runtime.model.ops import Attend, AttendLearned, Rotate
from ...runtime.model.program import Program
from .depths import each_row
from .elementwise import capped
from .graph import Graph, StageValue
from .values import PendingRotation, Values

_MASKED = -1e30
"""A score that softmax turns into 0, and that may fill a whole row: padding."""


_HEAD_DIMS, _ROTATED_DIMS = 8, 16
"""GroupQueryAttention takes heads of a multiple of so many dims, and rotates a multiple of so many of them."""


def rotate_now(graph: Graph, values: Values, op: Rotate) -> StageValue:
    """Return q or k rotated to its positions, by an operator of its own."""
    x = values[op.x]
    cos, sin = graph.cos_sin(graph.program.rotations.index(op.by), op.by.dims // 2)
    partial = {"rotary_embedding_dim": op.by.dims, "num_heads": op.heads}
    attributes = {"interleaved": 1} if op.pairs else {}
    attributes |= partial if op.by.dims * op.heads != x.size else {}
    positions = each_row(graph, "positions", x.fresh)
    y = graph.fused("RotaryEmbedding", x.value, positions, cos, sin, **attributes)
    return StageValue(y, x.size, x.fresh)


def rotate(graph: Graph, values: Values, op: Rotate) -> None:
    """Record a rotation, which the attention that reads it may do."""
    values[op.y] = PendingRotation(op)


def attend(graph: Graph, values: Values, op: Attend) -> None:
    """Write attention over a lane's slot, or over the new tokens alone."""
    y = (_fused if _fits(op) else _standard)(graph, values, op)
    if graph.packed:
        flat = graph.one("Reshape", y, graph.numbers(-1, 1, op.heads * op.head_dim))
        y = graph.one("Gather", flat, graph.given("kept"), axis=0)
    values[op.y] = StageValue(y, op.heads * op.head_dim)


def _fits(op: Attend) -> bool:
    """Return whether the fused operator computes ``op``."""
    return op.cache is not None and op.mask == "causal" and op.head_dim % _HEAD_DIMS == 0


def problem(program: Program, op: Attend) -> str | None:
    """Return why no graph computes ``op`` of a block; None where a graph can."""
    shared, tokens = op.slot == "first" and program.shares_kv, window(program, op)
    odd = f"mask {op.mask}" if op.mask != "causal" else f"heads of {op.head_dim}"
    if shared and not _fits(op):
        return f"target onnx does not take attend with {odd} where depths share K/V"
    if program.moving_window is not None and op.cache is not None and not _fits(op):
        return f"target onnx does not take attend with {odd} in a sliding window"
    if program.moving_window is not None and tokens != program.moving_window:
        return f"attention sees {tokens} tokens in some layers and {program.window} in others; target onnx takes one"
    return None


def attend_learned(graph: Graph, values: Values, op: AttendLearned) -> None:
    """Write attention over keys and values that are weights, [P, K · d] each."""
    q = _queries(graph, values[op.q].value, op)
    shape = graph.numbers(-1, op.kv_heads, 1, op.head_dim)
    keys, learned = (
        graph.one("Reshape", graph.weight(f"{name}.weight", as_float=True), shape)
        for name in (op.keys, op.values)
    )
    scores = graph.one("MatMul", q, graph.one("Transpose", keys, perm=(1, 2, 3, 0)))
    scores = graph.one("Mul", scores, graph.number(op.scale))
    shares = graph.one("Softmax", scores, axis=-1)
    y = graph.one("MatMul", shares, graph.one("Transpose", learned, perm=(1, 2, 0, 3)))
    values[op.y] = StageValue(_merged(graph, y, op), op.heads * op.head_dim, values[op.q].fresh)


def _fused(graph: Graph, values: Values, op: Attend) -> ir.Value:
    assert op.cache is not None
    assert op.k is not None
    assert op.v is not None
    attributes: dict[str, Any] = {"num_heads": op.heads, "kv_num_heads": op.kv_heads}
    rotated = [values.pending(name) for name in (op.q, op.k)]
    rotations = [
        (value.op.by, value.op.pairs)
        for value in rotated
        if isinstance(value, PendingRotation) and value.op.by.dims % _ROTATED_DIMS == 0
    ]
    names, cos_sin = [op.q, op.k, op.v], list[ir.Value | None]()
    if len(rotations) == 2 and rotations[0] == rotations[1]:
        by, pairs = rotations[0]
        names[:2] = (value.op.x for value in rotated if isinstance(value, PendingRotation))
        cos_sin = [*graph.cos_sin(graph.program.rotations.index(by), by.dims // 2), graph.given("positions")]
        attributes |= {"do_rotary": 1} | ({"rotary_interleaved": 1} if pairs else {})
    if op.scale != op.head_dim**-0.5:
        attributes["scale"] = op.scale
    if op.cap is not None:
        attributes["softcap"] = op.cap
    if (tokens := window(graph.program, op)) is not None:
        attributes["local_window_size"] = tokens
        if graph.program.moving_window is not None:  # slots are no longer than that, and some more rows
            attributes["sliding_window_cache"] = 1
    shared = op.slot == "first" and graph.shared
    packed = None if shared else values.together(*names)
    if packed is not None:
        new = [_in_lanes(graph, packed), None, None]
    else:
        new = [_in_lanes(graph, values[name]) for name in names]
    if shared and not all(values[name].fresh for name in names[1:]):
        raise ExportError("target onnx does not take attend where K/V that depths share are used for more")
    past = graph.past(op.cache, op.kv_heads, op.head_dim)
    inputs = [*new, *past, graph.given("last"), graph.given("longest"), *cos_sin]
    if not shared:  # the operator takes no tokens (query_seqlens) where key and value may have no rows
        inputs += [None] * (16 - len(inputs)) + [graph.given("tokens")]
    y, key, value = graph.node("GroupQueryAttention", *inputs, domain=MICROSOFT, outputs=3, **attributes)
    graph.present[op.cache] = key, value
    return y


def _in_lanes(graph: Graph, x: StageValue) -> ir.Value:
    """Return x as [B, S, size]."""
    if not graph.packed:
        return x.value
    flat = graph.one("Reshape", x.value, graph.numbers(-1, x.size))
    return graph.one("Gather", flat, graph.given("spread_new" if x.fresh else "spread"), axis=0)


def _standard(graph: Graph, values: Values, op: Attend) -> ir.Value:
    """Return softmax(mask(cap(scale · q kᵀ))) v, written out."""
    assert op.k is not None
    assert op.v is not None
    q, k, v = (_in_lanes(graph, values[name]) for name in (op.q, op.k, op.v))
    q = _queries(graph, q, op)
    lanes = _LaneNumbers.of(graph)
    new = [graph.one("Reshape", x, graph.numbers(0, 0, op.kv_heads, op.head_dim)) for x in (k, v)]
    new = [graph.one("Transpose", x, perm=(0, 2, 1, 3)) for x in new]  # [B, K, S, d]
    if op.cache is None:
        columns = graph.one("Add", lanes.steps, lanes.cached)
        length = lanes.length
    else:
        length = graph.one("Shape", graph.past(op.cache, op.kv_heads, op.head_dim)[0], start=2, end=3)
        columns = _count(graph, length)
        new = [_written(graph, x, past, columns) for x, past in
               zip(new, graph.past(op.cache, op.kv_heads, op.head_dim), strict=True)]  # fmt: skip
        graph.present[op.cache] = new[0], new[1]
    keys, held = (graph.one("Unsqueeze", x, graph.numbers(2)) for x in new)
    scores = graph.one("MatMul", q, graph.one("Transpose", keys, perm=(0, 1, 2, 4, 3)))
    scores = graph.one("Mul", scores, graph.number(op.scale))
    if op.cap is not None:
        scores = capped(graph, scores, op.cap)
    seen = graph.one("Unsqueeze", _seen(graph, op, columns), graph.numbers(1, 2))
    scores = graph.one("Where", seen, scores, graph.number(_MASKED))
    y = graph.one("MatMul", graph.one("Softmax", scores, axis=-1), held)
    return _merged(graph, y, op)


@dataclass(frozen=True)
class _LaneNumbers:
    """Of each lane, int64: tokens that are ``cached``, ``total`` with the new ones [B, 1]; ``steps`` [1, S], S [1]."""

    cached: ir.Value
    total: ir.Value
    steps: ir.Value
    length: ir.Value

    @staticmethod
    def of(graph: Graph) -> _LaneNumbers:
        """Return the numbers of the lanes of ``graph``."""

        def wide(name: str) -> ir.Value:
            whole = graph.one("Cast", graph.given(name), to=ir.DataType.INT64)
            return graph.one("Unsqueeze", whole, graph.numbers(1))

        total = graph.once(("total",), lambda: graph.one("Add", wide("last"), graph.numbers(1)))
        cached = graph.once(("cached",), lambda: graph.one("Sub", total, wide("tokens")))
        length = graph.once(("length",), lambda: graph.one("Shape", graph.given("positions"), start=1, end=2))
        return _LaneNumbers(cached, total, graph.once(("steps",), lambda: _count(graph, length)), length)


def _count(graph: Graph, length: ir.Value) -> ir.Value:
    """Return 0 … length − 1, [1, length] int64."""
    scalar = graph.one("Reshape", length, graph.constant(np.empty(0), np.int64))
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    return graph.one("Unsqueeze", graph.one("Range", zero, scalar, one), graph.numbers(0))


def _written(graph: Graph, new: ir.Value, past: ir.Value, columns: ir.Value) -> ir.Value:
    """Return past [B, K, C, d] with the valid rows of new [B, K, S, d] behind the cached ones."""
    lanes = _LaneNumbers.of(graph)
    step = graph.one("Sub", columns, lanes.cached)  # [B, C]
    last = graph.one("Sub", lanes.length, graph.numbers(1))
    near = graph.one("Min", graph.one("Max", step, graph.numbers(0)), last)
    near = graph.one("Unsqueeze", near, graph.numbers(1, 3))
    picked = graph.one("GatherElements", new, graph.one("Expand", near, graph.one("Shape", past)), axis=2)
    valid = graph.one(
        "And",
        graph.one("GreaterOrEqual", columns, lanes.cached),
        graph.one("Less", columns, lanes.total),
    )
    return graph.one("Where", graph.one("Unsqueeze", valid, graph.numbers(1, 3)), picked, past)


def _seen(graph: Graph, op: Attend, columns: ir.Value) -> ir.Value:
    """Return [B, S, T]: whether row s sees key t. ``columns`` [1 or B, T] are the keys' positions."""
    lanes = _LaneNumbers.of(graph)
    keys = graph.one("Unsqueeze", columns, graph.numbers(1))
    seen = graph.one("Less", keys, graph.one("Unsqueeze", lanes.total, graph.numbers(2)))
    tokens = window(graph.program, op)
    if op.mask == "both" and tokens is None:
        return seen
    rows = graph.one("Unsqueeze", graph.one("Add", lanes.cached, lanes.steps), graph.numbers(2))
    if op.mask != "both":
        before = graph.one("LessOrEqual", keys, rows)
        if op.mask == "prefix":
            cached = graph.one("Unsqueeze", lanes.cached, graph.numbers(2))
            before = graph.one("Or", before, graph.one("Less", cached, graph.numbers(1)))
        seen = graph.one("And", seen, before)
    if tokens is not None:
        oldest = graph.one("Sub", rows, graph.numbers(tokens))
        seen = graph.one("And", seen, graph.one("Less", oldest, keys))
    return seen


def window(program: Program, op: Attend) -> int | None:
    """Return how many tokens a row sees at most; None where a window covers the whole context."""
    return None if op.window is None or op.window >= program.context_length else op.window


def _queries(graph: Graph, q: ir.Value, op: Attend | AttendLearned) -> ir.Value:
    """Return q [B, S, H · d] as [B, K, H / K, S, d]."""
    parts = graph.one("Reshape", q, graph.numbers(0, 0, op.kv_heads, op.heads // op.kv_heads, op.head_dim))
    return graph.one("Transpose", parts, perm=(0, 2, 3, 1, 4))


def _merged(graph: Graph, y: ir.Value, op: Attend | AttendLearned) -> ir.Value:
    """Return y [B, K, H / K, S, d] as [B, S, H · d]."""
    rows = graph.one("Transpose", y, perm=(0, 3, 1, 2, 4))
    return graph.one("Reshape", rows, graph.numbers(0, 0, op.heads * op.head_dim))
