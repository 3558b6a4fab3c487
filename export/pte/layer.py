"""One layer on M rows, in the words that XNNPACK takes into one delegate.

Caches are inputs that the graph only reads; the new K and V are outputs, which the host writes. A row sees its cache
[K, C, hd], whose rows behind the valid ones are hidden by ``mask``, and new rows: ``place`` says into which of the C
columns each of them falls, so that one softmax goes over all. What is in those rows of the cache must be zero.

M rows, C rows of a cache, H heads, K KV heads, hd head_dim, G = H/K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.spec import Segment, Spec
from ...runtime.weights import MATRICES, projection_shapes
from ..modules import Weights
from ..weights import SPLIT, split_rows
from .matrix import Delta, Matrix, Norm

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """What a call's layers share.

    depth: one-hot [M, R], or a repeat's number. cos, sin [M, 1, hd], the first half of sin
    negative. ``place`` and ``mask``: of each row
    [1, M, C] and [1, 1, C]; of a chunk, which is one lane, [1, C, M] and [1, 1, M, C].
    """

    depth: Tensor | int | None
    cos: Tensor
    sin: Tensor
    place: tuple[Tensor, ...]
    mask: tuple[Tensor, ...]
    chunk: bool
    reads: bool = False
    """The caches hold the new rows already, and no K and V are made."""


class Layer(nn.Module):
    """One physical layer. ``split``: queries are projected apart from K and V, because some calls have none."""

    def __init__(
        self, spec: Spec, segment: Segment, weights: Weights, prefix: str, bits: int, split: bool
    ) -> None:
        super().__init__()
        self.spec = spec
        names = ["attention_norm", "mlp_norm"]
        names += ["attention_out_norm", "mlp_out_norm"] if spec.sandwich_norms else []
        self.norms = nn.ModuleDict({n: Norm(weights[f"{prefix}{n}.weight"], spec.norm_eps) for n in names})
        self.deltas = nn.ModuleDict({p: Delta(weights, f"{prefix}{p}") for p in segment.lora})
        self.parts = dict(MATRICES)
        self.matrices = nn.ModuleDict()
        if split:
            del self.parts["qkv_proj"]
            self.parts |= SPLIT
            for part, rows in split_rows(spec).items():
                self.matrices[part] = Matrix(weights, f"{prefix}qkv_proj", bits, slice(*rows))
        for name in self.parts:
            if name not in self.matrices:
                self.matrices[name] = Matrix(weights, f"{prefix}{name}", bits)
        self.sizes = {name: out for name, (out, _) in projection_shapes(spec).items()}

    def project(self, name: str, x: Tensor, call: Call) -> list[Tensor]:
        """x [M, in] through a stored matrix: [M, out] of each of its projections, deltas included."""
        y, start, outputs = self.matrices[name](x), 0, []
        for part in self.parts[name]:
            stop = start + self.sizes[part]
            out = y if len(self.parts[name]) == 1 else y[:, start:stop]
            outputs.append(out + self.deltas[part](x, call.depth) if part in self.deltas else out)
            start = stop
        return outputs

    def norm(self, name: str, x: Tensor, call: Call) -> Tensor:
        normed: Tensor = self.norms[name](x, call.depth)
        return normed

    def queries_keys_values(self, h: Tensor, call: Call) -> list[Tensor]:
        """h [M, D] → q [M, H, hd] and, unless the call only reads, k and v [M, K, hd]; turned to their positions."""
        width = self.spec.head_dim
        if "qkv_proj" in self.matrices:
            q, k, v = self.project("qkv_proj", h, call)
            both = rotate(
                torch.cat((q, k), 1).view(len(h), -1, width), call
            )  # one turn for both is half the graph
            return [both[:, : self.spec.heads], both[:, self.spec.heads :], v.view(len(h), -1, width)]
        (q,) = self.project("q_proj", h, call)
        new = [] if call.reads else [y.view(len(h), -1, width) for y in self.project("kv_proj", h, call)]
        return [rotate(y, call) for y in (q.view(len(h), -1, width), *new[:1])] + new[1:]

    def forward(self, x: Tensor, call: Call, caches: list[Pair]) -> tuple[Tensor, list[Tensor]]:
        """x [M, D] and the caches of its rows, or one for a chunk → x, and new k and v [M, K, hd]."""
        q, *new = self.queries_keys_values(self.norm("attention_norm", x, call), call)
        attend = attend_chunk if call.chunk else attend_rows
        (a,) = self.project("o_proj", attend(q * self.spec.head_dim**-0.5, new, call, caches), call)
        x = x + (self.norm("attention_out_norm", a, call) if self.spec.sandwich_norms else a)
        gate, up = self.project("gate_up_proj", self.norm("mlp_norm", x, call), call)
        (m,) = self.project("down_proj", F.silu(gate) * up, call)
        return x + (self.norm("mlp_out_norm", m, call) if self.spec.sandwich_norms else m), new


class KeysValues(Layer):
    """What of a layer makes its K and V; the queries are made with them, because they are one matrix."""

    def keys_values(self, x: Tensor, call: Call) -> list[Tensor]:
        """x [M, D] → k and v [M, K, hd]."""
        return self.queries_keys_values(self.norm("attention_norm", x, call), call)[1:]


def rotate(x: Tensor, call: Call) -> Tensor:
    """x [M, heads, hd] → the same, each head turned to its row's position."""
    half = x.shape[-1] // 2
    return x * call.cos + torch.cat((x[..., half:], x[..., :half]), dim=-1) * call.sin


def attend_rows(q: Tensor, new: list[Tensor], call: Call, caches: list[Pair]) -> Tensor:
    """q [M, H, hd], each row with a cache of its own → [M, H·hd]."""
    rows, _, width = q.shape
    out = []
    kv_heads = caches[0][0].shape[0]
    if new:
        k, v = new[0].permute(1, 2, 0), new[1].permute(1, 0, 2)  # [K, hd, M], [K, M, hd]
    for i, (key, value) in enumerate(caches):
        query = q[i : i + 1].reshape(kv_heads, -1, width)  # a KV head's query heads share it
        scores = torch.bmm(query, key.transpose(1, 2)) + call.mask[i]  # [K, G, C]
        if new:
            own, place = torch.bmm(query, k), call.place[i]
            if rows == 1:
                scores = scores + own * place
            else:
                flat = torch.bmm(own.reshape(1, -1, rows), place)
                scores = scores + flat.view(kv_heads, query.shape[1], -1)
        weights = torch.softmax(scores, dim=-1)
        mixed = torch.bmm(weights, value)
        if new:
            flat = weights.view(1, kv_heads * query.shape[1], -1)
            own = torch.bmm(flat, call.place[i].transpose(1, 2)).view(kv_heads, -1, rows)
            mixed = mixed + torch.bmm(own, v)
        out.append(mixed.reshape(1, -1))
    return torch.cat(out) if rows > 1 else out[0]


def attend_chunk(q: Tensor, new: list[Tensor], call: Call, caches: list[Pair]) -> Tensor:
    """q [M, H, hd] of one lane → [M, H·hd].

    New rows are put into their places of the cache first: there is one cache, and many rows.
    """
    rows, heads, width = q.shape
    ((key, value),) = caches
    kv_heads = key.shape[0]
    if new:
        key, value = (
            cache
            + torch.bmm(call.place[0], y.reshape(1, rows, -1)).view(-1, kv_heads, width).permute(1, 0, 2)
            for cache, y in zip((key, value), new, strict=True)
        )
    query = q.view(rows, kv_heads, -1, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)  # [K, G·M, hd]
    scores = torch.bmm(query, key.transpose(1, 2)).view(kv_heads, heads // kv_heads, rows, -1) + call.mask[0]
    weights = torch.softmax(scores, dim=-1).view(kv_heads, rows * heads // kv_heads, -1)
    mixed = torch.bmm(weights, value).view(kv_heads, -1, rows, width)
    return mixed.permute(2, 0, 1, 3).reshape(rows, -1)
