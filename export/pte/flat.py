"""The whole model as one method, as ExecuTorch's stock LLM runners call it: the loop written out, caches inside.

    forward(tokens [1, S] int64, input_pos [1] int64) → logits [1, V] of the last token

A layer's matrices are one module however often it is applied; norms and deltas of each depth are its own. Caches are
buffers that the method changes: rings of C rows, in which token p is in row p mod C. So a sliding window needs no more
rows than it sees, and a sequence that outgrows the context forgets its oldest tokens instead of failing.

S new tokens, C rows of a cache, D width, H heads, K KV heads, hd head_dim, R depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.backend import F32
from ...runtime.spec import Segment, Spec
from ...runtime.weights import MATRICES, projection_shapes
from .matrix import Matrix, Norm, Weights, float_activations

HIDDEN = -1e30
"""Of a score that is not seen; infinities would be compared by XNNPACK's softmax."""


@dataclass(frozen=True)
class Place:
    """What a call's layers share: rows [K·S] of a flattened cache for the new tokens, cos, sin [S, 1, hd] (the first
    half of sin negative), mask [S, C]."""

    rows: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    swap: Tensor


class Ring(nn.Module):
    """K and V of one layer at one depth: each [K·C, hd], a KV head's rows together."""

    def __init__(self, spec: Spec, rows: int) -> None:
        super().__init__()
        self.heads = spec.kv_heads
        for side in ("key", "value"):
            self.register_buffer(side, torch.zeros(spec.kv_heads * rows, spec.head_dim))

    def write(self, new: list[Tensor], rows: Tensor) -> None:
        """new k and v [S, K, hd] into their rows."""
        for side, x in zip(("key", "value"), new, strict=True):
            flat = turned(x).view(-1, x.shape[-1])
            self.get_buffer(side).index_put_((rows,), flat)

    def read(self) -> list[Tensor]:
        """K and V [K, C, hd]."""
        return [
            self.get_buffer(side).view(self.heads, -1, self.get_buffer(side).shape[-1])
            for side in ("key", "value")
        ]


class FlatDelta(nn.Module):
    """One projection's LoRA at one depth: x [S, in] → [S, out]."""

    def __init__(self, weights: Weights, name: str, depth: int) -> None:
        super().__init__()
        for side in ("lora_a", "lora_b"):
            # Cloned: a buffer that is a view of a larger one is lowered as the larger one's first values.
            self.register_buffer(side, weights[f"{name}.{side}"][depth].float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.get_buffer("lora_a")), self.get_buffer("lora_b"))


class Applied(nn.Module):
    """One application of a layer: ``matrices`` are those of all of its applications.

    ``reads``: it has no K and V of its own, and reads the ``ring`` of another depth.
    """

    def __init__(
        self,
        spec: Spec,
        segment: Segment,
        weights: Weights,
        prefix: str,
        depth: int,
        matrices: nn.ModuleDict,
        ring: Ring,
        reads: bool,
    ) -> None:
        super().__init__()
        self.spec, self.matrices, self.ring, self.reads = spec, matrices, ring, reads
        names = ["attention_norm", "mlp_norm"]
        names += ["attention_out_norm", "mlp_out_norm"] if spec.sandwich_norms else []
        self.norms = nn.ModuleDict()
        for name in names:
            weight = weights[f"{prefix}{name}.weight"]
            self.norms[name] = Norm((weight[depth] if weight.ndim == 2 else weight).clone(), spec.norm_eps)
        self.deltas = nn.ModuleDict({p: FlatDelta(weights, f"{prefix}{p}", depth) for p in segment.lora})

    def project(self, name: str, x: Tensor) -> Tensor:
        """x [S, in] → [S, out], delta included."""
        y: Tensor = self.matrices[name](x)
        delta: Tensor | None = self.deltas[name](x) if name in self.deltas else None
        return y if delta is None else y + delta

    def norm(self, name: str, x: Tensor) -> Tensor:
        normed: Tensor = self.norms[name](x, None)
        return normed

    def heads(self, name: str, h: Tensor) -> Tensor:
        """h [S, D] → [S, heads, hd]."""
        y = self.project(name, h)
        return y.view(-1, y.shape[-1] // self.spec.head_dim, self.spec.head_dim)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """x [S, D] → [S, D]."""
        h = self.norm("attention_norm", x)
        q = rotate(self.heads("q_proj", h), place)
        if not self.reads:
            self.ring.write([rotate(self.heads("k_proj", h), place), self.heads("v_proj", h)], place.rows)
        a = self.project("o_proj", attend(q * self.spec.head_dim**-0.5, self.ring.read(), place.mask))
        x = x + (self.norm("attention_out_norm", a) if self.spec.sandwich_norms else a)
        h = self.norm("mlp_norm", x)
        m = self.project("down_proj", F.silu(self.project("gate_proj", h)) * self.project("up_proj", h))
        return x + (self.norm("mlp_out_norm", m) if self.spec.sandwich_norms else m)


def rotate(x: Tensor, place: Place) -> Tensor:
    """x [S, heads, hd] → the same, each head turned to its token's position.

    The halves are swapped by a matrix: XNNPACK takes no slice of a tensor whose S is free.
    """
    return x * place.cos + F.linear(x, place.swap) * place.sin


def turned(x: Tensor) -> Tensor:
    """x with its first two axes swapped, laid out anew: whether it must be would be a question to each S."""
    return torch.clone(x.permute(1, 0, 2), memory_format=torch.contiguous_format)


def attend(q: Tensor, cache: list[Tensor], mask: Tensor) -> Tensor:
    """q [S, H, hd] over K and V [K, C, hd] → [S, H·hd]."""
    _, heads, width = q.shape
    key, value = cache
    kv_heads = key.shape[0]
    query = turned(q).view(kv_heads, -1, width)  # [K, G·S, hd]: a KV head's queries share it
    scores = torch.bmm(query, key.transpose(1, 2))
    scores = scores.view(kv_heads, heads // kv_heads, -1, key.shape[1]) + mask
    weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, key.shape[1])
    mixed = torch.bmm(weights, value).view(heads, -1, width)
    return turned(mixed).view(-1, heads * width)


class Rows(nn.Module):
    """The embedding [V, D], looked up in codes as quant/pack.py has them: operators that every host has."""

    def __init__(self, weights: Weights, bits: int) -> None:
        super().__init__()
        self.bits = bits
        if bits == 32:
            self.register_buffer("weight", weights["embed.weight"])
        else:
            self.register_buffer("codes", weights["embed.codes"].flatten(1))
            self.register_buffer("scales", weights["embed.scales"])

    def forward(self, ids: Tensor) -> Tensor:
        """ids [S] → [S, D] float32."""
        if self.bits == 32:
            return F.embedding(ids, self.get_buffer("weight"))
        codes, scales = self.get_buffer("codes")[ids], self.get_buffer("scales")[ids]
        if self.bits == 4:
            high = codes // 16
            codes = torch.stack((codes - high * 16, high), -1)
        values = codes.float().reshape(*scales.shape, -1) - 2 ** (self.bits - 1)
        rows: Tensor = (values * scales.float().unsqueeze(-1)).flatten(1)
        return rows


class Flat(nn.Module):
    """The whole model. ``rows``: C. ``chunk``: S at most."""

    def __init__(self, spec: Spec, weights: Weights, bits: int, rows: int, chunk: int) -> None:
        super().__init__()
        self.spec, self.window, self.chunk = spec, spec.window, chunk
        self.embed = Rows(weights, bits)
        self.norm = Norm(weights["norm.weight"], spec.norm_eps)
        self.head = Matrix(weights, "embed" if spec.tied_embedding else "head", bits)
        self.order = nn.ModuleList()
        self.passes: list[int] = []
        """How many layers have been applied when a depth ends, for the norm between depths."""
        for s, segment in enumerate(spec.segments):
            self._add(s, segment, weights, bits, rows)
        width = spec.head_dim
        self.register_buffer("steps", torch.arange(chunk))
        self.register_buffer("ring", torch.arange(rows))
        self.register_buffer("starts", torch.arange(spec.kv_heads).unsqueeze(1) * rows)
        frequency = spec.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        self.register_buffer("swap", torch.eye(width).roll(width // 2, 0))
        self.register_buffer("frequency", frequency.float())

    def _add(self, number: int, segment: Segment, weights: Weights, bits: int, rows: int) -> None:
        spec = self.spec
        looped = number in spec.stages.block and spec.depths > 1
        shares = looped and spec.shares_kv
        matrices = [
            shared_matrices(spec, weights, f"segments.{number}.layers.{j}.", bits)
            for j in range(segment.layers)
        ]
        rings: dict[int, Ring] = {}
        for depth in range(segment.repeats):
            for j in range(segment.layers):
                reads = shares and depth > 0
                ring = rings[j] if reads else Ring(spec, rows)
                rings[j] = ring
                prefix = f"segments.{number}.layers.{j}."
                self.order.append(Applied(spec, segment, weights, prefix, depth, matrices[j], ring, reads))
            if looped:
                self.passes.append(len(self.order))

    def place(self, start: Tensor, count: int) -> Place:
        """``count`` tokens from position ``start`` [1] on."""
        rows = len(self.get_buffer("ring"))
        steps = self.get_buffer("steps")[:count]
        positions = start + steps  # [S]
        at = (self.get_buffer("starts") + positions % rows).flatten()
        angle = positions.unsqueeze(1).float() * self.get_buffer("frequency")
        cos, sin = torch.cos(angle), torch.sin(angle)
        # Row c holds the newest position up to the call's last that is c modulo C.
        last = start + (count - 1)
        held = last - (last - self.get_buffer("ring")) % rows  # [C]
        seen = (held >= 0) & (held <= positions.unsqueeze(1))
        if self.window is not None:
            seen = seen & (held > positions.unsqueeze(1) - self.window)
        mask = torch.where(seen, 0.0, HIDDEN)
        return Place(
            at,
            torch.cat((cos, cos), 1).unsqueeze(1),
            torch.cat((-sin, sin), 1).unsqueeze(1),
            mask,
            self.get_buffer("swap"),
        )

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        place = self.place(input_pos, tokens.shape[1])
        x = self.embed(tokens.view(-1))
        for i, layer in enumerate(self.order, start=1):
            x = layer(x, place)
            if self.spec.loop_norm and i in self.passes:
                x = self.norm(x, None)
        x = x[-1:]
        logits: Tensor = self.head(x if self.spec.loop_norm else self.norm(x, None))
        return logits


class Unsaved:
    """The module itself as a program, with float activations; ``close`` empties its caches."""

    def __init__(self, model: Flat) -> None:
        self._model = model

    def logits(self, ids: Sequence[int], start: int) -> F32:
        """The tokens ``ids`` from position ``start`` on → logits [V] of the last one."""
        with torch.no_grad(), float_activations(self._model):
            found: F32 = self._model(torch.tensor([list(ids)]), torch.tensor([start]))[0].numpy()
        return found

    def close(self) -> None:
        """Forget all tokens."""
        for module in self._model.modules():
            if isinstance(module, Ring):
                for cache in module.buffers():
                    cache.zero_()


def shared_matrices(spec: Spec, weights: Weights, prefix: str, bits: int) -> nn.ModuleDict:
    """The projections of one physical layer, each by itself: XNNPACK takes no slice of a tensor whose S is free."""
    sizes = {name: out for name, (out, _) in projection_shapes(spec).items()}
    found = {}
    for name, parts in MATRICES.items():
        start = 0
        for part in parts:
            found[part] = Matrix(weights, f"{prefix}{name}", bits, slice(start, start + sizes[part]))
            start += sizes[part]
    return nn.ModuleDict(found)
