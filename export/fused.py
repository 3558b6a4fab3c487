"""Operators that ONNX Runtime has fused: emitted under export, plain arithmetic otherwise.

The plain arithmetic is the oracle that the exported graph is held against. Operators and their inputs:
onnxruntime docs/ContribOperators.md (MatMulNBits, GatherBlockQuantized, GroupQueryAttention,
RotaryEmbedding, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization).

B lanes, S new tokens, C cache capacity, D width, H heads, K KV heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.kv import resident
from ..runtime.spec import Spec

Cache = tuple[Tensor, Tensor]
MS = "com.microsoft::"


@dataclass(frozen=True)
class Numerics:
    """How matrices are stored and how precisely MatMulNBits computes (4: int8 activations).

    ``bits`` 32 is float, ``group_size`` 0 one scale for each row (``rowwise.py``).
    ``activations``: what an engine makes of the inputs of quantized matrices, for comparisons with it.
    """

    bits: int
    group_size: int
    accuracy_level: int
    activations: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class LaneTensors:
    """What attention needs to know of the lanes.

    positions [B, S] int64; last [B] int32, cached + new tokens − 1 (the operator's seqlens_k);
    longest [1] int32, the largest total of all lanes; tokens [B] int32, valid new tokens;
    cos, sin [P, head_dim/2] of positions 0 … P − 1, all that ``positions`` name and all that are cached.

    Where depths share K and V there is ``fresh`` [1] int64 instead of tokens: of how many of the S tokens, all of them
    valid, K and V are new. It is S or 0.
    """

    positions: Tensor
    last: Tensor
    longest: Tensor
    tokens: Tensor | None
    cos: Tensor
    sin: Tensor
    fresh: Tensor | None = None


def exporting() -> bool:
    """Is a graph being made?"""
    return bool(torch.onnx.is_in_onnx_export())


def unpack(codes: Tensor, scales: Tensor, bits: int, columns: int) -> Tensor:
    """codes [..., ⌈K/G⌉, G·bits/8] uint8, scales [..., ⌈K/G⌉] → float32 [..., K]; the layout of quant/pack.py."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    values: Tensor = (codes.float() - 2 ** (bits - 1)) * scales.float()[..., None]
    return values.flatten(-2).narrow(-1, 0, columns)


def matmul_nbits(x: Tensor, codes: Tensor, scales: Tensor, numerics: Numerics) -> Tensor:
    """x [..., K] → [..., N] through group-quantized weights.

    The scales' cast to float32 is folded when an engine loads the graph. It has to be: with graph optimization
    switched off, onnxruntime 1.32 packs before it casts and computes nonsense.
    """
    if not exporting():
        # In slices, so that a large head is never held whole in float32.
        slices = zip(codes.split(8192), scales.split(8192), strict=True)
        return torch.cat([F.linear(x, unpack(c, s, numerics.bits, x.shape[-1])) for c, s in slices], dim=-1)
    rows = codes.shape[0]
    out: Tensor = torch.onnx.ops.symbolic(
        f"{MS}MatMulNBits",
        [x, codes, scales.float()],
        {
            "K": x.shape[-1],
            "N": rows,
            "bits": numerics.bits,
            "block_size": numerics.group_size,
            "accuracy_level": numerics.accuracy_level,
        },
        dtype=x.dtype,
        shape=(*x.shape[:-1], rows),
        version=1,
    )
    return out


def gather_quantized(ids: Tensor, codes: Tensor, scales: Tensor, numerics: Numerics, columns: int) -> Tensor:
    """ids [B, S] → rows [B, S, K = ``columns``] of a table of codes [V, bytes] and scales [V, ⌈K/G⌉]."""
    groups = scales.shape[1]
    if not exporting():
        return unpack(codes[ids].unflatten(-1, (groups, -1)), scales[ids], numerics.bits, columns)
    width = groups * numerics.group_size
    out: Tensor = torch.onnx.ops.symbolic(
        f"{MS}GatherBlockQuantized",
        [codes, ids, scales.float()],
        {"bits": numerics.bits, "block_size": numerics.group_size, "gather_axis": 0, "quantize_axis": 1},
        dtype=torch.float32,
        shape=(*ids.shape, width),
        version=1,
    )
    return out[..., :columns] if columns < width else out


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., 2F] → its first and second half."""
    half = x.shape[-1] // 2
    if not exporting():
        return x[..., :half], x[..., half:]
    # The exporter would write a sequence and two look-ups for torch's own split.
    first, second = torch.onnx.ops.symbolic_multi_out(
        "Split",
        [x],
        {"axis": -1, "num_outputs": 2},
        dtypes=(x.dtype,) * 2,
        shapes=((*x.shape[:-1], half),) * 2,
    )
    return first, second


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """x [B, S, D] → x / rms(x) · gamma."""
    if not exporting():
        return F.rms_norm(x, x.shape[-1:], gamma, eps)
    # The domain is ONNX's own, but the operator is ONNX Runtime's (graph/contrib_ops).
    out: Tensor = torch.onnx.ops.symbolic(
        "SimplifiedLayerNormalization",
        [x, gamma],
        {"axis": -1, "epsilon": eps, "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual)."""
    if not exporting():
        total = x + residual
        return F.rms_norm(total, total.shape[-1:], gamma, eps), total
    # Outputs 1 and 2 (mean, inverse deviation) are for training; graphs.py removes them.
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        f"{MS}SkipSimplifiedLayerNormalization",
        [residual, x, gamma],
        {"epsilon": eps},
        dtypes=(x.dtype,) * 4,
        shapes=(x.shape, (1,), (1,), x.shape),
        version=1,
    )
    return normed, total


def first_tokens(x: Tensor, count: Tensor) -> Tensor:
    """x [B, S, …] → its first ``count`` [1] int64 tokens."""
    if not exporting():
        return x[:, : int(count)]
    # The shape is that of a count of S; graphs.py removes it.
    out: Tensor = torch.onnx.ops.symbolic(
        "Slice", [x, torch.tensor([0]), count, torch.tensor([1])], dtype=x.dtype, shape=x.shape
    )
    return out


def rotate(x: Tensor, lanes: LaneTensors) -> Tensor:
    """x [B, S, heads·hd] → the same with each head turned to its token's position."""
    if not exporting():
        cos, sin = lanes.cos[lanes.positions][:, :, None], lanes.sin[lanes.positions][:, :, None]
        return _rotate(x.unflatten(-1, (-1, 2 * cos.shape[-1])), cos, sin).flatten(-2)
    out: Tensor = torch.onnx.ops.symbolic(
        f"{MS}RotaryEmbedding",
        [x, lanes.positions, lanes.cos, lanes.sin],
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )
    return out


def attention(qkv: list[Tensor], cache: Cache, lanes: LaneTensors, spec: Spec) -> tuple[Tensor, Cache]:
    """qkv [B, S, (H+2K)·hd], cache 2 × [B, K, C, hd] → attended [B, S, H·hd] and the cache with new rows.

    ``qkv`` may also be three: q [B, S, H·hd], k and v [B, S or 0, K·hd]. Without k and v the cache has them already
    and is left as it is.
    """
    if not exporting():
        return _attention(qkv, cache, lanes, spec)
    width, query = spec.heads * spec.head_dim, qkv[0]
    window = spec.window
    sliding = {} if window is None else {"local_window_size": window, "sliding_window_cache": 1}
    new = [*qkv, None, None][:3]
    # The operator takes no tokens (query_seqlens) where key and value may have no rows.
    tokens = [] if lanes.tokens is None else [*[None] * 6, lanes.tokens]
    attended, key, value = torch.onnx.ops.symbolic_multi_out(
        f"{MS}GroupQueryAttention",
        [
            *[*new, *cache, lanes.last, lanes.longest, lanes.cos, lanes.sin, lanes.positions],
            *tokens,
        ],
        {"num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "do_rotary": 1, **sliding},
        dtypes=(query.dtype,) * 3,
        shapes=((*query.shape[:2], width), cache[0].shape, cache[1].shape),
        version=1,
    )
    return attended, (key, value)


def _attention(qkv: list[Tensor], cache: Cache, lanes: LaneTensors, spec: Spec) -> tuple[Tensor, Cache]:
    sizes = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
    parts = qkv if len(qkv) == 3 else qkv[0].split(sizes, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, spec.head_dim)) for part in parts)
    cos, sin = lanes.cos[lanes.positions][:, :, None], lanes.sin[lanes.positions][:, :, None]
    made, window = k.shape[1], spec.window
    q, k = _rotate(q, cos, sin), _rotate(k, cos[:, :made], sin[:, :made])
    caches = cache[0].clone(), cache[1].clone()
    out = torch.zeros_like(q)
    for lane in range(len(q)):
        new = q.shape[1] if lanes.tokens is None else int(lanes.tokens[lane])
        total = int(lanes.last[lane]) + 1
        if new == 0:
            continue
        if made:
            rows = (y[lane, :new].transpose(0, 1) for y in (k, v))
            keys, values = (
                _append(c[lane], y, total - new, window) for c, y in zip(caches, rows, strict=True)
            )
        else:
            keys, values = (c[lane, :, :total] for c in caches)
        length = keys.shape[1]
        age = torch.arange(length - new, length)[:, None] - torch.arange(length)[None]
        out[lane, :new] = F.scaled_dot_product_attention(
            q[lane, :new].transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=(age >= 0) & (age < (window or length)),
            enable_gqa=True,
        )[0].transpose(0, 1)
    return out.flatten(-2), caches


def _append(slot: Tensor, new: Tensor, cached: int, window: int | None) -> Tensor:
    """Write new [K, n, hd] after ``cached`` tokens into slot [K, C, hd] → all rows that can be seen."""
    rows, total = slot.shape[1], cached + new.shape[1]
    if window is None or total <= rows:
        slot[:, cached:total] = new
        return slot[:, :total]
    seen = torch.cat((slot[:, : resident(cached, rows, window)], new), 1)
    kept = resident(total, rows, window)
    slot[:, :kept] = seen[:, seen.shape[1] - kept :]
    return seen


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
