"""Attention as MIL: over the rows of a state, with the query heads of a KV head as rows of one product."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from ...runtime.model.ops import Attend, AttendLearned, Rotate
from ..targets.coreml.constants import Var
from .mil_elementwise import capped
from .mil_matrices import split
from .mil_scope import Scope, Values


def rotate(scope: Scope, values: Values, op: Rotate) -> None:
    """Write x · cos + x with its pairs crossed · sin: each head rotated to its token's position."""
    x = values.heads(op.x, op.heads)
    width = x.shape[-1]
    cos, sin = scope.tokens.cos_sin(op.by, width, op.pairs)
    rest = [width - op.by.dims] if op.by.dims < width else []
    if op.pairs:
        turned, *still = split(x, [op.by.dims, *rest])
        pairs = mb.reshape(x=turned, shape=[1, scope.count * op.heads, op.by.dims // 2, 2])
        first, second = mb.split(x=pairs, num_splits=2, axis=-1)
        crossed = mb.reshape(x=mb.concat(values=[second, first], axis=-1), shape=list(turned.shape))
        crossed = mb.concat(values=[crossed, *still], axis=-1) if still else crossed
    else:
        first, second, *still = split(x, [op.by.dims // 2, op.by.dims // 2, *rest])
        crossed = mb.concat(values=[second, first, *still], axis=-1)
    values[op.y] = mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=crossed, y=sin))


def attend(scope: Scope, values: Values, op: Attend) -> None:
    """Write attention over a state's rows, into which new K/V are written first; without a cache over those
    alone."""
    causal = op.cache is not None or op.mask == "causal"
    mask = scope.tokens.hidden_mask(op.heads // op.kv_heads, window(scope, op), causal)
    keys, held = _keys_values(scope, values, op)
    q = _queries(scope, values, op)
    if op.cap is None:
        y = mb.scaled_dot_product_attention(
            query=scaled(q, sharpness(op)), key=keys, value=held, attn_mask=mask
        )
    else:
        scores = mb.matmul(x=scaled(q, np.float16(op.scale)), y=keys, transpose_y=True)
        scores = mb.add(x=capped(scores, op.cap), y=mask)
        y = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=held)
    values[op.y] = _tokens_first(scope, y, op)


def attend_learned(scope: Scope, values: Values, op: AttendLearned) -> None:
    """Write attention over keys and values that are weights, [P, K · d] each."""
    keys, held = (_by_head(scope, name, op) for name in (op.keys, op.values))
    q = scaled(_queries(scope, values, op), sharpness(op))
    values[op.y] = _tokens_first(scope, mb.scaled_dot_product_attention(query=q, key=keys, value=held), op)


def keep(scope: Scope, values: Values, cache: int, k: str, v: str) -> None:
    """Write the tokens' K/V into their rows of ``cache``."""
    place = scope.place(cache)
    for state, name in ((place.keys, k), (place.values, v)):
        new = _heads_first(scope, values, name, scope.plan.states[state][1])
        scope.states.write(state, place.row, new, scope.tokens.start, scope.tokens.stop)
    scope.written.add(cache)


def _keys_values(scope: Scope, values: Values, op: Attend) -> list[Var]:
    """Return the K/V that are attended to, [1, K, C, d] each."""
    if op.k is not None and op.v is not None:
        if op.cache is None:
            return [_heads_first(scope, values, name, op.kv_heads) for name in (op.k, op.v)]
        keep(scope, values, op.cache, op.k, op.v)
    assert op.cache is not None
    place = scope.place(op.cache)
    return [scope.states.row(state, place.row) for state in (place.keys, place.values)]


def _heads_first(scope: Scope, values: Values, name: str, heads: int) -> Var:
    """Return a value as [1, heads, T, d]; for one token by a reshape, which states prefer."""
    if scope.count == 1:
        return mb.reshape(x=values[name], shape=[1, heads, 1, values.size(name) // heads])
    return mb.transpose(x=values.heads(name, heads), perm=[0, 2, 1, 3])


def sharpness(op: Attend | AttendLearned) -> np.float16:
    """Return the factor of queries for an operator that divides by √d."""
    return np.float16(op.scale * op.head_dim**0.5)


def scaled(q: Var, factor: np.float16) -> Var:
    """Return q · factor."""
    return q if factor == 1 else mb.mul(x=q, y=factor)


def window(scope: Scope, op: Attend) -> int | None:
    """Return how many tokens a row sees at most; None where a window covers the whole context."""
    tokens = op.window
    return None if tokens is None or tokens >= scope.plan.program.context_length else tokens


def _queries(scope: Scope, values: Values, op: Attend | AttendLearned) -> Var:
    """Return q as [1, K, G·T, d]: the query heads of a KV head go through one product, so that K/V are not
    repeated."""
    shape = [1, op.kv_heads, op.heads // op.kv_heads * scope.count, op.head_dim]
    if scope.count == 1:
        return mb.reshape(x=values[op.q], shape=shape)
    return mb.reshape(x=_heads_first(scope, values, op.q, op.heads), shape=shape)


def _tokens_first(scope: Scope, y: Var, op: Attend | AttendLearned) -> Var:
    """Return y [1, K, G·T, d] as [1, T, H·d]."""
    if scope.count > 1:
        y = mb.reshape(x=y, shape=[1, op.heads, scope.count, op.head_dim])
        y = mb.transpose(x=y, perm=[0, 2, 1, 3])
    return mb.reshape(x=y, shape=[1, scope.count, op.heads * op.head_dim])


def _by_head(scope: Scope, name: str, op: AttendLearned) -> Var:
    """Return the vectors ``name`` as [1, K, P, d]."""
    key, rows = scope.constants.store.half(f"{name}.weight")
    heads = rows.reshape(len(rows), op.kv_heads, op.head_dim).transpose(1, 0, 2)
    return scope.constants.array(f"{key}.heads", np.ascontiguousarray(heads[None]))
