"""The attentions of a program in plain numpy: the keys and values of a lane, what its tokens see, and the softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...model import ops
from ..kv import rows_kept
from .lane import Lane, Slot

F32 = npt.NDArray[np.float32]


def attend(op: ops.Attend, lane: Lane, q: F32, *new: F32) -> F32:
    """Return [n, H · d] of ``Attend``: q over the lane's slot, or over the new k and v alone."""
    if op.cache is None:
        keys, values = (by_head(x, op.kv_heads) for x in new)
    else:
        slot = (lane.first if op.slot == "first" else lane.own)[op.cache]
        keys, values = lane_keys_values(slot, lane.cached, len(q), *new)
    return softmax_attention(
        op, q, keys, values, seen_keys(lane, len(q), keys.shape[1], op.mask, op.window), op.cap
    )


def attend_twice(op: ops.AttendTwice, lane: Lane, q: F32, k: F32, v: F32, gate: F32) -> F32:
    """Return [n, H · d] of ``AttendTwice``: ``gate`` times attention to depth 0's keys, the rest to the own ones."""
    n = len(q)
    keys, values = lane_keys_values(lane.own[op.cache], lane.cached, n, k, v)
    if lane.depth == 0:
        return softmax_attention(op, q, keys, values, seen_keys(lane, n, keys.shape[1]))
    near = softmax_attention(op, q, keys, values, seen_keys(lane, n, keys.shape[1], window=op.window))
    keys, values = lane_keys_values(lane.first[op.cache], lane.cached, n)
    far = softmax_attention(op, q, keys, values, seen_keys(lane, n, keys.shape[1]))
    g = np.repeat(gate, op.head_dim, axis=1)
    mixed: F32 = g * far + (1 - g) * near
    return mixed


def attend_learned(op: ops.AttendLearned, lane: Lane, q: F32) -> F32:
    """Return [n, H · d] of ``AttendLearned``: q over keys and values that are weights."""
    keys, values = (
        by_head(lane.weights.small(f"{name}.weight"), op.kv_heads) for name in (op.keys, op.values)
    )
    return softmax_attention(op, q, keys, values, np.ones((len(q), keys.shape[1]), bool))


def by_head(x: F32, heads: int) -> F32:
    """Return x [n, heads · d] as [heads, n, d]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def lane_keys_values(slot: Slot, cached: int, n: int, *new: F32) -> tuple[F32, F32]:
    """Return K and V [kv_heads, T, d] that n tokens see behind ``cached`` ones; ``new`` k and v are written first."""
    if not new:
        return slot.keys[:, : cached + n], slot.values[:, : cached + n]
    keys, values = (
        append(rows, by_head(x, len(rows)), cached, slot.window)
        for rows, x in zip((slot.keys, slot.values), new, strict=True)
    )
    return keys, values


def append(slot: F32, new: F32, cached: int, window: int | None) -> F32:
    """Write ``new`` [K, n, d] after ``cached`` tokens into slot [K, rows, d]; return all rows that can be seen."""
    rows, total = slot.shape[1], cached + new.shape[1]
    if window is None or total <= rows:
        slot[:, cached:total] = new
        return slot[:, :total]
    visible = np.concatenate((slot[:, : rows_kept(cached, rows, window)], new), axis=1)
    kept = rows_kept(total, rows, window)
    slot[:, :kept] = visible[:, visible.shape[1] - kept :]
    return visible


def seen_keys(
    lane: Lane, n: int, total: int, mask: str = "causal", window: int | None = None
) -> npt.NDArray[np.bool_]:
    """Return [n, total]: which of ``total`` keys, the last n of them the tokens' own, each of n tokens sees."""
    key = np.arange(total)
    age = total - n + np.arange(n)[:, None] - key
    allowed = age >= 0
    if mask == "both":
        allowed = np.ones_like(allowed)
    elif mask == "prefix":
        allowed |= key < lane.block - (lane.cached + n - total)  # the first tokens may be gone already
    return allowed if window is None else allowed & (age < window)


def softmax_attention(
    op: ops.Attend | ops.AttendTwice | ops.AttendLearned,
    q: F32,
    keys: F32,
    values: F32,
    allowed: npt.NDArray[np.bool_],
    cap: float | None = None,
) -> F32:
    """Return [n, H · d] of q [n, H · d], keys and values [kv_heads, T, d], allowed [n, T]."""
    n = len(q)
    queries = by_head(q, op.heads).reshape(op.kv_heads, -1, n, op.head_dim)  # some heads share a KV head
    scores = queries @ keys[:, None].swapaxes(-1, -2) * np.float32(op.scale)
    scores = scores if cap is None else capped(scores, cap)
    mixed = softmax(np.where(allowed, scores, np.float32(-np.inf))) @ values[:, None]
    rows: F32 = mixed.reshape(op.heads, n, op.head_dim).transpose(1, 0, 2).reshape(n, -1)
    return rows


def softmax(x: F32) -> F32:
    """Return the softmax over the last axis."""
    e: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def capped(x: F32, cap: float) -> F32:
    """Return cap · tanh(x / cap)."""
    y: F32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return y
