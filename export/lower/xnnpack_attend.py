"""Rotation and attention over caches that the graph only reads, in the words that XNNPACK takes into one delegate.

The new K/V are outputs, which the host writes. A row attends to the call's new rows and, behind them, to its cache
[K, C, d]; a mask hides what it must not see of both. New rows come first because their number is fixed and C is not:
XNNPACK joins tensors of free sizes, but does not slice them.

A mask is [1, 1, M + C] of each row; of a chunk, which is one lane, [1, G·M, M + C]. Without the M where the caches hold
the new rows already, without the C where there is no cache.

M rows, C rows of a cache, H heads, K KV heads, d size of a head, G = H/K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.engines.executorch.kinds import RotaryInput, mask_of
from ...runtime.model import ops
from ...runtime.model.rotation import Rotation
from .xnnpack_call import Call, Pair
from .xnnpack_ops import LoweringScope, Slice, by_heads, capped, rows


@dataclass(frozen=True)
class JointRotate:
    """``Rotate`` of several values at once: one rotation of queries and keys is half the graph."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    heads: tuple[int, ...]
    by: Rotation
    pairs: bool


def together(found: tuple[ops.Op, ...], sizes: Mapping[str, int]) -> list[ops.Op | JointRotate]:
    """Return ``found`` with consecutive equal rotations of heads of one size joined."""
    made = list[ops.Op | JointRotate]()
    for op in found:
        if not isinstance(op, ops.Rotate):
            made.append(op)
            continue
        joint = JointRotate((op.x,), (op.y,), (op.heads,), op.by, op.pairs)
        last = made[-1] if made else None
        if isinstance(last, JointRotate) and _alike(last, joint, sizes):
            joint = JointRotate((*last.x, op.x), (*last.y, op.y), (*last.heads, op.heads), op.by, op.pairs)
            made.pop()
        made.append(joint)
    return made


def _alike(last: JointRotate, joint: JointRotate, sizes: Mapping[str, int]) -> bool:
    """Return whether ``joint`` can be joined to ``last``."""
    widths = [sizes[each.x[0]] // each.heads[0] for each in (last, joint)]
    return (
        (last.by, last.pairs) == (joint.by, joint.pairs)
        and widths[0] == widths[1]
        and joint.x[0] not in last.y
    )


class Rotate(nn.Module):
    """Each head rotated to its row's position; dims that are not rotated stay as they are."""

    def __init__(self, op: JointRotate, scope: LoweringScope) -> None:
        super().__init__()
        self.heads, self.rotary_input, self.dims = op.heads, RotaryInput(op.by, op.pairs), op.by.dims
        self.width = scope.sizes[op.x[0]] // op.heads[0]
        if op.pairs:
            self.register_buffer("swap", swapped(self.dims, True, self.dims))

    def forward(self, call: Call, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the values rotated, in order."""
        x = values[0]
        if len(values) > 1:
            x = torch.cat([rows(value) for value in values], 1).view(len(x), -1, self.width)
        x, (cos, sin) = by_heads(x, sum(self.heads)), call.cos_sin[self.rotary_input]
        part, rest = x, None
        if self.dims < self.width:
            part, rest = x[..., : self.dims], x[..., self.dims :]
        if self.rotary_input.pairs:
            other = F.linear(part, self.get_buffer("swap"))
        else:
            half = self.dims // 2
            other = torch.cat((part[..., half:], part[..., :half]), dim=-1)
        y = part * cos + other * sin
        if rest is not None:
            y = torch.cat((y, rest), dim=-1)
        if len(values) == 1:
            return y
        start, found = 0, []
        for heads in self.heads:
            found.append(y[:, start : start + heads])
            start += heads
        return tuple(found)


def swapped(dims: int, pairs: bool, width: int) -> Tensor:
    """Return [width, width]: the matrix that maps each of ``dims`` rotated dims to the other one of its pair, others
    to 0."""
    half = dims // 2
    other = [i ^ 1 if pairs else (i + half) % dims for i in range(dims)]
    matrix = torch.zeros(width, width)
    matrix[range(dims), other] = 1
    return matrix


class Attend(nn.Module):
    """Attention of M rows, each with a cache of its own, or all of one lane."""

    def __init__(self, op: ops.Attend, scope: LoweringScope) -> None:
        super().__init__()
        self.op, self.mask = op, (mask_of(scope.held.program, op), op.heads // op.kv_heads)

    def forward(self, call: Call, q: Tensor, *new: Tensor) -> Tensor:
        """Return the attention of q over the new rows and the caches, [M, H·d]."""
        op = self.op
        q = by_heads(q, op.heads) * op.scale
        made = [by_heads(y, op.kv_heads) for y in new]
        if op.cache is not None and made:
            call.new[op.cache] = made[0], made[1]
        caches = [] if op.cache is None else call.caches[op.cache]
        own = [heads_first(y) for y in made]
        attend = self._chunk if call.chunk else self._rows
        return attend(q, own, caches, call.masks[self.mask])

    def _rows(self, q: Tensor, own: list[Tensor], caches: Sequence[Pair], masks: Sequence[Tensor]) -> Tensor:
        """Return [M, H·d] of q [M, H, d], each row with a cache of its own."""
        count, _, width = q.shape
        out = []
        for i in range(count):
            key, value = _joined(own, caches[i] if caches else None)
            query = q[i : i + 1].reshape(self.op.kv_heads, -1, width)  # a KV head's query heads share it
            out.append(self._mixed(query, key, value, masks[i]).reshape(1, -1))  # [K, G, M + C]
        return torch.cat(out) if count > 1 else out[0]

    def _chunk(self, q: Tensor, own: list[Tensor], caches: Sequence[Pair], masks: Sequence[Tensor]) -> Tensor:
        """Return [M, H·d] of q [M, H, d] of one lane."""
        (count, _, width), kv_heads = q.shape, self.op.kv_heads
        key, value = _joined(own, caches[0] if caches else None)
        query = q.view(count, kv_heads, -1, width).permute(1, 2, 0, 3)
        query = query.reshape(kv_heads, -1, width)  # [K, G·M, d]
        mixed = self._mixed(query, key, value, masks[0]).view(kv_heads, -1, count, width)
        return mixed.permute(2, 0, 1, 3).reshape(count, -1)

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        scores = torch.bmm(query, key.transpose(1, 2))
        if self.op.cap is not None:
            scores = capped(scores, self.op.cap)
        return torch.bmm(torch.softmax(scores + mask, dim=-1), value)


class AttendLearned(nn.Module):
    """Attention over keys and values that are weights: a matrix product for each KV head."""

    def __init__(self, op: ops.AttendLearned, scope: LoweringScope) -> None:
        super().__init__()
        self.op, group = op, op.heads // op.kv_heads * op.head_dim
        starts = [k * group for k in range(op.kv_heads)]
        # A KV head's queries are some columns of q.
        parts = [Slice(ops.Slice(op.q, "", start, start + group), scope) for start in starts]
        self.parts = nn.ModuleList(parts)
        keys, values = (
            scope.held.weights[f"{name}.weight"].float().unflatten(1, (op.kv_heads, -1))
            for name in (op.keys, op.values)
        )
        for k in range(op.kv_heads):
            self.register_buffer(f"keys{k}", keys[:, k].contiguous().clone())  # [P, d]
            self.register_buffer(f"values{k}", values[:, k].t().contiguous().clone())  # [d, P]

    def forward(self, call: Call, q: Tensor) -> Tensor:
        """Return the attention of q over the learned keys, [M, H·d]."""
        op = self.op
        group, mixed = op.heads // op.kv_heads * op.head_dim, []
        for k, part in enumerate(self.parts):
            own = part(call, q).reshape(-1, op.head_dim) * op.scale
            shares = torch.softmax(F.linear(own, self.get_buffer(f"keys{k}")), dim=-1)
            mixed.append(F.linear(shares, self.get_buffer(f"values{k}")).reshape(-1, group))
        return torch.cat(mixed, 1) if len(mixed) > 1 else mixed[0]


def heads_first(y: Tensor) -> Tensor:
    """Return y [M, K, d] as [K, M, d], laid out as the caches are that it is concatenated with."""
    return y.permute(1, 0, 2).contiguous()


def _joined(own: list[Tensor], cache: Pair | None) -> tuple[Tensor, Tensor]:
    """Return K and V [K, M + C, d]: the new rows, then the cache."""
    if cache is None:
        return own[0], own[1]
    if not own:
        return cache
    key, value = (torch.cat(both, 1) for both in zip(own, cache, strict=True))
    return key, value
