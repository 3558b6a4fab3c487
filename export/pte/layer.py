"""One layer on M rows, in the words that XNNPACK takes into one delegate.

Caches are inputs that the graph only reads; the new K and V are outputs, which the host writes. A row attends to the
call's new rows and, behind them, to its cache [K, C, hd]; ``mask`` hides what it must not see of both. New rows come
first because their number is fixed and C is not: XNNPACK joins tensors of free sizes, but does not slice them.

M rows, C rows of a cache, H heads, K KV heads, hd head_dim, G = H/K.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.spec import Segment, Spec
from ...runtime.weights import MATRICES, SPLIT, projection_shapes, split_rows
from .matrix import Delta, Matrix, Norm, Weights

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """What a call's layers share.

    depth: one-hot [M, R], or a repeat's number. cos, sin [M, 1, hd], the first half of sin negative.
    ``mask``: of each row [1, 1, M + C]; of a chunk, which is one lane, [1, G·M, M + C]. Without the new M if it
    only reads.
    ``columns``: of deltas of rank r, one-hot for each row's depth [M, R·r].
    """

    depth: Tensor | int | None
    cos: Tensor
    sin: Tensor
    mask: tuple[Tensor, ...]
    chunk: bool
    reads: bool = False
    """The caches hold the new rows already, and no K and V are made."""
    columns: dict[int, Tensor] = field(default_factory=dict)


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
            outputs.append(
                out + self.deltas[part](x, call.depth, call.columns) if part in self.deltas else out
            )
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


def heads_first(y: Tensor) -> Tensor:
    """y [M, K, hd] → [K, M, hd], laid out as the caches are that it is joined to."""
    return y.permute(1, 0, 2).contiguous()


def attend_rows(q: Tensor, new: list[Tensor], call: Call, caches: list[Pair]) -> Tensor:
    """q [M, H, hd], each row with a cache of its own → [M, H·hd]."""
    rows, _, width = q.shape
    kv_heads = caches[0][0].shape[0]
    own = [heads_first(y) for y in new]
    out = []
    for i, pair in enumerate(caches):
        key, value = (torch.cat(both, 1) for both in zip(own, pair, strict=True)) if new else pair
        query = q[i : i + 1].reshape(kv_heads, -1, width)  # a KV head's query heads share it
        scores = torch.bmm(query, key.transpose(1, 2)) + call.mask[i]  # [K, G, M + C]
        out.append(torch.bmm(torch.softmax(scores, dim=-1), value).reshape(1, -1))
    return torch.cat(out) if rows > 1 else out[0]


def attend_chunk(q: Tensor, new: list[Tensor], call: Call, caches: list[Pair]) -> Tensor:
    """q [M, H, hd] of one lane → [M, H·hd]."""
    rows, _, width = q.shape
    ((key, value),) = caches
    kv_heads = key.shape[0]
    if new:
        key, value = (
            torch.cat((heads_first(y), cache), 1) for y, cache in zip(new, (key, value), strict=True)
        )
    query = q.view(rows, kv_heads, -1, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)  # [K, G·M, hd]
    scores = torch.bmm(query, key.transpose(1, 2)) + call.mask[0]
    mixed = torch.bmm(torch.softmax(scores, dim=-1), value).view(kv_heads, -1, rows, width)
    return mixed.permute(2, 0, 1, 3).reshape(rows, -1)
