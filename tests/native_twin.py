"""The lane engine's arithmetic in numpy: every op as docs/native.md ("Numerics") defines it, to the last bit.

A twin is the reference engine with these in place of its own ops: it shares how lanes, slots and masks are read, not
in which order numbers are multiplied and added. Each operation here is one rounding of numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeloop.runtime.engines.reference import lane as reference_lane
from edgeloop.runtime.engines.reference import ops as reference_ops
from edgeloop.runtime.engines.reference.attention import by_head, lane_keys_values, seen_keys
from edgeloop.runtime.engines.reference.lane import Lane
from edgeloop.runtime.model import ops
from edgeloop.runtime.model.codec import Grouped, around_zero
from edgeloop.runtime.model.rotary import frequencies
from edgeloop.runtime.model.rotation import Rotation, Yarn
from edgeloop.runtime.model.weights import sibling

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LANES = 16
ONE, HALF, MAGIC = np.float32(1), np.float32(0.5), np.float32(12582912)


def replace_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reference engines twins of the lane engine for the rest of a test."""
    monkeypatch.setattr(reference_ops, "OPS", OPS)
    monkeypatch.setattr(reference_lane, "cos_sin", cos_sin)


# ---- sums and functions ------------------------------------------------------------------------------------


def folded(lanes: F32) -> F32:
    """[..., 16] → [...]: halves onto each other, 16 → 8 → 4 → 2 → 1."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def total(x: F32) -> F32:
    """[..., n] → [..., 1]: number i goes to sum i / 16 mod 4, lane i mod 16."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])
    pieces = padded.reshape(*x.shape[:-1], -1, LANES)
    s = np.zeros((4, *x.shape[:-1], LANES), np.float32)
    for i in range(pieces.shape[-2]):
        s[i % 4] = s[i % 4] + pieces[..., i, :]
    return folded((s[0] + s[1]) + (s[2] + s[3]))[..., None]


def polynomial(x: F32, *coefficients: float) -> F32:
    """From the highest coefficient down."""
    y = np.full_like(x, np.float32(coefficients[0]))
    for c in coefficients[1:]:
        y = y * x + np.float32(c)
    return y


def exp(x: F32) -> F32:
    """2ⁿ · eʳ, 2ⁿ in two factors."""
    x = np.minimum(np.float32(89), np.maximum(np.float32(-104), x))
    n = _rounded(x * np.float32(1.44269504))
    half = _rounded(n * HALF)
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    series = polynomial(
        r,
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
    y = ((r * r) * series + r) + ONE
    return (y * np.ldexp(ONE, half.astype(np.int32))) * np.ldexp(ONE, (n - half).astype(np.int32))


def _rounded(x: F32) -> F32:
    return (x + MAGIC) - MAGIC


def tanh(x: F32) -> F32:
    """A polynomial near 0, else of e^2x."""
    size, z = np.abs(x), x * x
    series = polynomial(
        z, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
    )
    near = (x * z) * series + x
    far = ONE - np.float32(2) / (exp(size + size) + ONE)
    return np.where(size < np.float32(0.625), near, np.copysign(far, x))


def erf(x: F32) -> F32:
    """A polynomial near 0, else 1 − e^−q."""
    size = np.abs(x)
    upper = np.minimum(np.float32(4), size)
    near = x * polynomial(
        x * x, 7.853861353e-5, -8.010193625e-4, 5.188327685e-3, -2.685381193e-2, 1.128358515e-1, -3.761262582e-1,
        1.128379167,
    )  # fmt: skip
    q = polynomial(
        upper, -1.6140616e-6, 4.5590623e-5, -5.92769531e-4, 4.74022236e-3, -2.63647176e-2, 1.09978244e-1,
        6.31937087e-1, 1.13016665, -3.0321299e-4,
    )  # fmt: skip
    return np.where(size < ONE, near, np.copysign(ONE - exp(np.float32(0) - q), x))


def sigmoid(x: F32) -> F32:
    """1 / (1 + e^−x)."""
    y: F32 = ONE / (ONE + exp(np.float32(0) - x))
    return y


def softplus(x: F32) -> F32:
    """max(x, 0) + ln(1 + e^−|x|)."""
    t = exp(np.float32(0) - np.abs(x))
    s = t / (t + np.float32(2))
    z, twice = s * s, s + s
    series = polynomial(z, 1.3433805e-1, 1.41169727e-1, 2.00038359e-1, 3.33333194e-1)
    return np.maximum(np.float32(0), x) + (twice * (z * series) + twice)


def gelu_tanh(x: F32) -> F32:
    """x · sigmoid(1.6 · (x + 0.045 x³))."""
    u = np.float32(1.59576912) * (((x * x) * x) * np.float32(0.044715) + x)
    return x / (ONE + exp(np.float32(0) - u))


FUNCTIONS: dict[ops.Function, Callable[[F32], F32]] = {
    "silu": lambda x: x / (ONE + exp(np.float32(0) - x)),
    "gelu": lambda x: (x * HALF) * (erf(x * np.float32(0.70710678)) + ONE),
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(np.float32(0), x),
    "relu2": lambda x: np.maximum(np.float32(0), x) * np.maximum(np.float32(0), x),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "softplus": softplus,
    "exp": exp,
}


# ---- products ----------------------------------------------------------------------------------------------


def int8_product(x: F32, weights: Grouped, group: int) -> F32:
    """Σ over groups, in order: float32(Σ codes · codes) · (scale of the weights · scale of the activations)."""
    rows, columns = x.shape
    padded = np.pad(x, ((0, 0), (0, -columns % group))).reshape(rows, -1, group)
    peak = np.abs(padded).max(-1)
    with np.errstate(over="ignore", divide="ignore"):
        per_step = np.float32(127) / peak
    some = np.isfinite(per_step)
    steps = np.rint(padded * np.where(some, per_step, 0)[..., None]).astype(np.int32)
    scales = np.where(some, peak / np.float32(127), np.float32(0))
    codes = around_zero(weights.codes, weights.bits).astype(np.int32)
    y = np.zeros((rows, len(codes)), np.float32)
    for g in range(codes.shape[1]):
        sums = (steps[:, g] @ codes[:, g].T).astype(np.float32)
        y = y + sums * (weights.scales[:, g].astype(np.float32)[None] * scales[:, g, None])
    return y


def float_product(x: F32, weights: F32) -> F32:
    """Column k goes to sum k % 4, in order."""
    s = np.zeros((4, len(x), len(weights)), np.float32)
    for k in range(x.shape[1]):
        s[k % 4] = s[k % 4] + x[:, k, None] * weights[None, :, k]
    y: F32 = (s[0] + s[1]) + (s[2] + s[3])
    return y


def times(lane: Lane, x: F32, name: str, first: int, last: int) -> F32:
    """x [n, K] times rows ``first`` to ``last`` − 1 of a stored matrix."""
    coded = lane.weights._coded.get(name)
    if lane.activations is None or not isinstance(coded, Grouped):
        return float_product(x, np.concatenate([*lane.weights.pieces(name, first, last)]))
    picked = Grouped(coded.codes[first:last], coded.scales[first:last], coded.bits, coded.columns)
    return int8_product(x, picked, lane.weights.group_size(name) or coded.columns)


def delta_times(lane: Lane, x: F32, name: str, depth: int) -> F32:
    """x [n, K] times one side of a delta at ``depth``."""
    coded = lane.weights._coded.get(name)
    if lane.activations is None or not isinstance(coded, Grouped):
        return float_product(x, lane.weights.delta(name, depth))
    rows = slice(depth * lane.weights._rows_of[name], (depth + 1) * lane.weights._rows_of[name])
    return int8_product(x, Grouped(coded.codes[rows], coded.scales[rows], 8, coded.columns), coded.columns)


def linear(op: ops.Linear, lane: Lane, x: F32) -> list[F32]:
    """W x + B (A x), times the delta's scale, plus the bias."""
    weights, matrix = lane.weights, lane.weights.matrix(op.weight)
    depth = lane.depth if op.at is None else op.at
    found, parts = [], list(matrix.parts)
    row = sum(list(matrix.parts.values())[: op.first]) + (depth * matrix.rows if matrix.copies > 1 else 0)
    for part in parts[op.first : op.first + len(op.y)]:
        last = row + matrix.parts[part]
        y, name = times(lane, x, op.weight, row, last), sibling(op.weight, part)
        if part in matrix.deltas:
            y = y + delta_times(lane, delta_times(lane, x, f"{name}.lora_a", depth), f"{name}.lora_b", depth)
            if matrix.deltas[part].rescaled:
                y = y * weights.small(f"{name}.lora_scale")[depth]
        if matrix.bias:
            y = y + weights.small(f"{op.weight}.bias")[row:last]
        found.append(y)
        row = last
    return found


# ---- the other ops -----------------------------------------------------------------------------------------


def norm(op: ops.Norm, lane: Lane, x: F32) -> F32:
    """x · (1 / √(mean + eps)) · w + b."""
    parts = x.reshape(len(x), op.groups, -1)
    size = np.float32(parts.shape[-1])
    if op.kind == "layer":
        parts = parts - total(parts) / size
    y: F32 = parts * (ONE / np.sqrt(total(parts * parts) / size + np.float32(op.eps)))
    if op.weight is not None:
        y = y * lane.row(op.weight, op.at)
    if op.bias is not None:
        y = y + lane.row(op.bias, op.at)
    return y.reshape(x.shape)


def cos_sin(by: Rotation, positions: I64) -> tuple[F32, F32]:
    """In double precision, by quarters of a turn and Taylor's series, times the amplitude."""
    angle: F64 = positions[:, None] * frequencies(by)
    to_whole = float.fromhex("0x1.8p+52")
    quarters = angle * float.fromhex("0x1.45f306dc9c883p-1") + to_whole - to_whole
    x = (
        (angle - quarters * float.fromhex("0x1.921fb544p+0")) - quarters * float.fromhex("0x1.0b4611a6p-34")
    ) - quarters * float.fromhex("0x1.3198a2e037073p-69")
    y = x * x
    s = _taylor(y, 1, 6, 120, 5040, 362880, 39916800, 6227020800, 1307674368000) * x
    c = _taylor(y, 1, 2, 24, 720, 40320, 3628800, 479001600, 87178291200, 20922789888000)
    quarter = quarters.astype(np.int64) & 3
    sine, cosine = np.choose(quarter, [s, c, -s, -c]), np.choose(quarter, [c, -s, -c, s])
    amplitude = by.scaling.amplitude if isinstance(by.scaling, Yarn) else 1.0
    return (cosine * amplitude).astype(np.float32), (sine * amplitude).astype(np.float32)


def _taylor(y: F64, *divisors: int) -> F64:
    sums = np.zeros_like(y)
    for i in range(len(divisors) - 1, -1, -1):
        sums = sums * y + (-1.0 if i % 2 else 1.0) / divisors[i]
    return sums


def attention(
    op: ops.Attend | ops.AttendTwice | ops.AttendLearned,
    q: F32,
    keys: F32,
    values: F32,
    allowed: npt.NDArray[np.bool_],
    first: int,
    cap: float | None = None,
) -> F32:
    """[n, H · d] over keys and values [kv_heads, T, d], which begin with token ``first``; ``allowed`` [n, T]."""
    queries = by_head(q, op.heads)  # [H, n, d]
    found = np.empty_like(queries)
    for head, rows in enumerate(queries):
        k, v = (each[head * op.kv_heads // op.heads] for each in (keys, values))
        for i, row in enumerate(rows):
            seen = np.flatnonzero(allowed[i])
            assert (np.diff(seen) == 1).all()
            s = np.zeros(len(seen), np.float32)
            for d in range(op.head_dim):
                s = s + row[d] * k[seen, d]
            s = s * np.float32(op.scale)
            if cap is not None:
                s = np.float32(cap) * tanh(s / np.float32(cap))
            p = exp(s - s.max())
            lanes, mixed = np.zeros(LANES, np.float32), np.zeros(op.head_dim, np.float32)
            for token, share in zip(seen, p, strict=True):
                lanes[(first + token) % LANES] += share
                mixed = mixed + share * v[token]
            found[head, i] = mixed * (ONE / folded(lanes))
    return found.transpose(1, 0, 2).reshape(len(q), -1)


def attend(op: ops.Attend, lane: Lane, q: F32, *new: F32) -> F32:
    """Over the lane's slot, or over the new k and v alone."""
    n = len(q)
    if op.cache is None:
        keys, values = (by_head(x, op.kv_heads) for x in new)
        return attention(op, q, keys, values, seen_keys(lane, n, n, op.mask, op.window), 0, op.cap)
    slot = (lane.first if op.slot == "first" else lane.own)[op.cache]
    keys, values = lane_keys_values(slot, lane.cached, n, *new)
    seen = seen_keys(lane, n, keys.shape[1], op.mask, op.window)
    return attention(op, q, keys, values, seen, lane.cached + n - keys.shape[1], op.cap)


def attend_twice(op: ops.AttendTwice, lane: Lane, q: F32, k: F32, v: F32, gate: F32) -> F32:
    """g · attention to depth 0's keys + (1 − g) · to the own ones."""
    n = len(q)

    def over(keys: F32, values: F32, window: int | None = None) -> F32:
        seen = seen_keys(lane, n, keys.shape[1], window=window)
        return attention(op, q, keys, values, seen, lane.cached + n - keys.shape[1])

    own = lane_keys_values(lane.own[op.cache], lane.cached, n, k, v)
    if lane.depth == 0:
        return over(*own)
    near, far = over(*own, op.window), over(*lane_keys_values(lane.first[op.cache], lane.cached, n))
    g = np.repeat(gate, op.head_dim, axis=1)
    return g * far + (ONE - g) * near


def attend_learned(op: ops.AttendLearned, lane: Lane, q: F32) -> F32:
    """Over keys and values that are weights."""
    keys, values = (
        by_head(lane.weights.small(f"{name}.weight"), op.kv_heads) for name in (op.keys, op.values)
    )
    return attention(op, q, keys, values, np.ones((len(q), keys.shape[1]), bool), 0)


def mul(op: ops.Mul, lane: Lane, a: F32, b: F32) -> F32:
    """Where b is shorter, 0 is added as Scale does: −0 becomes 0."""
    y: F32 = a.reshape(*b.shape, -1) * b[..., None]
    return (y if a.shape == b.shape else y + np.float32(0)).reshape(a.shape)


def softcap(op: ops.Softcap, lane: Lane, x: F32) -> F32:
    """cap · tanh(x / cap)."""
    return np.float32(op.cap) * tanh(x / np.float32(op.cap))


def experts(op: ops.Experts, lane: Lane, x: F32, scores: F32) -> F32:
    """Each row through its experts, in their order."""
    e = exp(scores - scores.max(-1, keepdims=True))
    p = e / total(e)
    up, down = lane.weights.matrix(op.up).rows, lane.weights.matrix(op.down).rows
    y = np.zeros((len(x), down), np.float32)
    for i in range(len(x)):
        chosen = np.argsort(-p[i], kind="stable")[: op.top]
        whole = np.float32(0)
        for each in chosen:
            whole = whole + p[i, each]
        for each in np.sort(chosen):
            h = times(lane, x[i : i + 1], op.up, each * up, (each + 1) * up)
            halves: Sequence[F32] = np.split(h, 2, axis=1) if op.gated else (h,)
            h = FUNCTIONS[op.function](halves[0])
            h = h * halves[1] if op.gated else h
            share = p[i, each] / whole if op.renormalised else p[i, each]
            y[i] = y[i] + share * times(lane, h, op.down, each * down, (each + 1) * down)[0]
    return y


OPS: dict[str, Callable[..., Any]] = {
    **reference_ops.OPS,
    "norm": norm,
    "linear": linear,
    "attend": attend,
    "attend_twice": attend_twice,
    "attend_learned": attend_learned,
    "act": lambda op, lane, x: FUNCTIONS[op.function](x),
    "mul": mul,
    "softcap": softcap,
    "experts": experts,
}
"""Those of the reference engine are exact, or one operation a number, where they are not replaced."""
