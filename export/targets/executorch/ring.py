"""The modules of the flat layout alone: attention over rings that the method writes, lookups, rotation without slices.

S new tokens, C rows of a cache, H heads, K KV heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....runtime.engines.executorch.kinds import Mask, RotaryInput, mask_of
from ....runtime.model import ops
from ...lower.xnnpack_attend import swapped
from ...lower.xnnpack_ops import LoweringScope, by_heads, capped
from ...lower.xnnpack_weights import bits_of

Width = tuple[RotaryInput, int]
"""A rotation, and the size of the heads that it rotates a part of."""


@dataclass(frozen=True)
class Call:
    """What a call's ops share: the ``rows`` [K·S] of a flattened cache that the new tokens get, the ``masks`` [S, C],
    cos and sin [S, 1, d] of each of ``cos_sin``, sin negative where a dim is the first of its pair."""

    rows: Tensor
    cos_sin: Mapping[Width, tuple[Tensor, Tensor]]
    masks: Mapping[Mask, Tensor]


class Ring(nn.Module):
    """K/V of one attention: each [K·C, d], a KV head's rows together."""

    def __init__(self, heads: int, rows: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        for side in ("key", "value"):
            self.register_buffer(side, torch.zeros(heads * rows, width))

    def write(self, new: list[Tensor], rows: Tensor) -> None:
        """Write new k and v [S, K, d] into their rows."""
        for side, x in zip(("key", "value"), new, strict=True):
            flat = heads_and_tokens_swapped(x).view(-1, x.shape[-1])
            self.get_buffer(side).index_put_((rows,), flat)

    def read(self) -> list[Tensor]:
        """Return K and V [K, C, d]."""
        return [
            self.get_buffer(side).view(self.heads, -1, self.get_buffer(side).shape[-1])
            for side in ("key", "value")
        ]


class Rings:
    """The rings of a model, by the numbers of their caches; ``rows`` of each: C."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._made: dict[int, Ring] = {}

    def attend(self, op: ops.Attend, scope: LoweringScope) -> Attend:
        """Return the lowering of ``op``."""
        assert op.cache is not None
        if op.cache not in self._made:
            self._made[op.cache] = Ring(op.kv_heads, self.rows, op.head_dim)
        return Attend(op, scope, self._made[op.cache])


class Attend(nn.Module):
    """Attention over a ring, to which the new K/V are written first where there are any."""

    def __init__(self, op: ops.Attend, scope: LoweringScope, ring: Ring) -> None:
        super().__init__()
        self.op, self.mask, self.ring = op, mask_of(scope.held.program, op), ring

    def forward(self, call: Call, q: Tensor, *new: Tensor) -> Tensor:
        """Return the attention of q over the ring, [S, H·d]."""
        op = self.op
        if new:
            self.ring.write([by_heads(y, op.kv_heads) for y in new], call.rows)
        key, value = self.ring.read()
        query = heads_and_tokens_swapped(by_heads(q, op.heads) * op.scale)
        query = query.view(op.kv_heads, -1, op.head_dim)  # [K, G·S, d]: a KV head's queries share it
        scores = torch.bmm(query, key.transpose(1, 2))
        if op.cap is not None:
            scores = capped(scores, op.cap)
        scores = scores.view(op.kv_heads, op.heads // op.kv_heads, -1, key.shape[1]) + call.masks[self.mask]
        weights = torch.softmax(scores, dim=-1).view(op.kv_heads, -1, key.shape[1])
        mixed = torch.bmm(weights, value).view(op.heads, -1, op.head_dim)
        return heads_and_tokens_swapped(mixed).view(-1, op.heads * op.head_dim)


class Rotate(nn.Module):
    """Each head rotated to its token's position; pairs are swapped by a matrix, because slices are not available."""

    def __init__(self, op: ops.Rotate, scope: LoweringScope) -> None:
        super().__init__()
        width = scope.sizes[op.x] // op.heads
        self.heads, self.rotary_input = op.heads, (RotaryInput(op.by, op.pairs), width)
        self.register_buffer("swap", swapped(op.by.dims, op.pairs, width))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Return x rotated, [S, heads·d]."""
        cos, sin = call.cos_sin[self.rotary_input]
        heads = by_heads(x, self.heads)
        return heads * cos + F.linear(heads, self.get_buffer("swap")) * sin


class Lookup(nn.Module):
    """Rows of a table [V, D], looked up in codes as quant/pack.py has them: operators that every host has."""

    def __init__(self, op: ops.Embed, scope: LoweringScope) -> None:
        super().__init__()
        weights, self.scale = scope.held.weights, op.scale
        self.bits = bits_of(scope.held.program, weights, op.table)
        if self.bits == 32:
            self.register_buffer("weight", weights[f"{op.table}.weight"])
        else:
            self.register_buffer("codes", weights[f"{op.table}.codes"].flatten(1))
            self.register_buffer("scales", weights[f"{op.table}.scales"])

    def forward(self, call: Call, ids: Tensor) -> Tensor:
        """Return rows ids [S] as [S, D] float32."""
        rows = self._rows(ids)
        return rows if self.scale == 1 else rows * self.scale

    def _rows(self, ids: Tensor) -> Tensor:
        if self.bits == 32:
            return F.embedding(ids, self.get_buffer("weight"))
        codes, scales = self.get_buffer("codes")[ids], self.get_buffer("scales")[ids]
        if self.bits == 4:
            high = codes // 16
            codes = torch.stack((codes - high * 16, high), -1)
        values = codes.float().reshape(*scales.shape, -1) - 2 ** (self.bits - 1)
        rows: Tensor = (values * scales.float().unsqueeze(-1)).flatten(1)
        return rows


def heads_and_tokens_swapped(x: Tensor) -> Tensor:
    """Return x with its first two axes swapped, copied: whether a copy is needed would become a guard on every S."""
    return torch.clone(x.permute(1, 0, 2), memory_format=torch.contiguous_format)
