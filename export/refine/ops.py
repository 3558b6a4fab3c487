"""Every op of a program in torch, on whole windows of text at once, and differentiable: a function for each.

A function takes the op, the call, and the values that the op reads, in order, [B, S, size] each (ids [B, S]); it
returns what the op writes. Formulas: ``runtime/model/ops.py``; the reference engine is what these are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.model import ops
from ...runtime.model.ops import kind
from ...runtime.model.program import Stage
from ...runtime.model.rotary import cos_sin
from ...runtime.model.rotation import Rotation
from ...runtime.model.weights import Matrix, Weight, sibling

Pair = tuple[Tensor, Tensor]
"""K and V of windows [B, K, S, d]."""


@dataclass(frozen=True)
class Call:
    """Windows at one depth, and what ops read beside their values.

    ``values``: the stored tensors by name, matrices as floats [N, K]. ``first``: K and V that depth 0 made, by the
    numbers of the caches; a depth 0 writes them.
    """

    weights: Mapping[str, Weight]
    values: Mapping[str, Tensor]
    turns: dict[Rotation, Pair]
    depth: int = 0
    first: dict[int, Pair] = field(default_factory=dict)

    def matrix(self, name: str) -> Matrix:
        """Return the description of the matrix ``name``."""
        weight = self.weights[name]
        assert isinstance(weight, Matrix)
        return weight

    def row(self, name: str, at: int | None) -> Tensor:
        """Return the vector ``name`` [size], of depth ``at`` or of the call's where it has a row for each."""
        vector = self.values[f"{name}.weight"]
        return vector if vector.ndim == 1 else vector[self.depth if at is None else at]

    def cos_sin(self, by: Rotation, like: Tensor) -> Pair:
        """Return cos and sin [S, dims/2] of the positions of ``like`` [B, S, …]."""
        count = like.shape[1]
        if by not in self.turns or len(self.turns[by][0]) < count:
            tables = cos_sin(by, torch.arange(count).numpy())
            self.turns[by] = tuple(torch.from_numpy(table).to(like.device) for table in tables)  # type: ignore[assignment]
        cos, sin = self.turns[by]
        return cos[:count], sin[:count]


def compute(stage: Stage, call: Call, *given: Tensor) -> list[Tensor]:
    """Return the outputs of ``stage`` for its inputs."""
    values: dict[str, Any] = dict(zip(stage.inputs, given, strict=True))
    for op in stage.ops:
        found = OPS[kind(op)](op, call, *(values[name] for name in ops.reads(op)))
        made = found if isinstance(found, list) else [found]
        values.update(zip(ops.writes(op), made, strict=True))
    return [values[name] for name in stage.outputs]


def embed(op: ops.Embed, call: Call, ids: Tensor) -> Tensor:
    """Return scale · table[ids]."""
    y: Tensor = F.embedding(ids, call.values[f"{op.table}.weight"]) * op.scale
    return y


def norm(op: ops.Norm, call: Call, x: Tensor) -> Tensor:
    """Return the RMSNorm or LayerNorm of x, each group by itself."""
    parts = x.unflatten(-1, (op.groups, -1))
    if op.kind == "layer":
        parts = parts - parts.mean(-1, keepdim=True)
    y = parts * torch.rsqrt((parts * parts).mean(-1, keepdim=True) + op.eps)
    if op.weight is not None:
        y = y * call.row(op.weight, op.at)
    if op.bias is not None:
        y = y + call.row(op.bias, op.at)
    whole: Tensor = y.flatten(-2)
    return whole


def linear(op: ops.Linear, call: Call, x: Tensor) -> list[Tensor]:
    """Return the parts of W x + b, plus the deltas of the depth."""
    matrix, values = call.matrix(op.weight), call.values
    depth = call.depth if op.at is None else op.at
    parts = list(matrix.parts)[op.first : op.first + len(op.y)]
    sizes = [matrix.parts[part] for part in parts]
    first = sum(list(matrix.parts.values())[: op.first]) + (depth * matrix.rows if matrix.copies > 1 else 0)
    rows = slice(first, first + sum(sizes))
    found = list(F.linear(x, values[f"{op.weight}.weight"][rows]).split(sizes, -1))
    for i, part in enumerate(parts):
        if part in matrix.deltas:
            name = sibling(op.weight, part)
            inner = F.linear(x, values[f"{name}.lora_a"][depth])
            found[i] = found[i] + F.linear(inner, values[f"{name}.lora_b"][depth])
            if matrix.deltas[part].rescaled:
                found[i] = found[i] * values[f"{name}.lora_scale"][depth]
    if matrix.bias:
        bias = values[f"{op.weight}.bias"][rows].split(sizes)
        found = [y + b for y, b in zip(found, bias, strict=True)]
    return found


def rotate(op: ops.Rotate, call: Call, x: Tensor) -> Tensor:
    """Return the heads of x rotated to their positions."""
    cos, sin = (table[:, None] for table in call.cos_sin(op.by, x))
    heads, dims = x.unflatten(-1, (op.heads, -1)), op.by.dims
    turned, rest = heads[..., :dims], heads[..., dims:]
    one, two = (turned[..., 0::2], turned[..., 1::2]) if op.pairs else turned.chunk(2, -1)
    made = one * cos - two * sin, two * cos + one * sin
    y = torch.stack(made, -1).flatten(-2) if op.pairs else torch.cat(made, -1)
    return torch.cat((y, rest), -1).flatten(-2)


def attend(op: ops.Attend, call: Call, q: Tensor, *new: Tensor) -> Tensor:
    """Return [B, S, H · d] of ``Attend``: of new K and V, or of those that depth 0 made."""
    if new:
        keys, values = (by_head(x, op.kv_heads) for x in new)
        if op.cache is not None and call.depth == 0:
            call.first[op.cache] = keys, values
    else:
        assert op.cache is not None
        keys, values = call.first[op.cache]
    # Where the tokens of a prompt see each other, none sees what it is to predict: as in evaluation.
    return attention(op, q, keys, values, seen(q, op.window), op.cap)


def attend_twice(op: ops.AttendTwice, call: Call, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Return [B, S, H · d] of ``AttendTwice``: ``gate`` times attention to depth 0's keys, the rest to the own ones."""
    keys, values = by_head(k, op.kv_heads), by_head(v, op.kv_heads)
    if call.depth == 0:
        call.first[op.cache] = keys, values
        return attention(op, q, keys, values, seen(q))
    near = attention(op, q, keys, values, seen(q, op.window))
    far = attention(op, q, *call.first[op.cache], seen(q))
    g = gate.repeat_interleave(op.head_dim, -1)
    return g * far + (1 - g) * near


def attend_learned(op: ops.AttendLearned, call: Call, q: Tensor) -> Tensor:
    """Return [B, S, H · d] of ``AttendLearned``: q over keys and values that are weights."""
    keys, values = (
        by_head(call.values[f"{name}.weight"][None], op.kv_heads).expand(len(q), -1, -1, -1)
        for name in (op.keys, op.values)
    )
    return attention(op, q, keys, values, None)


def by_head(x: Tensor, heads: int) -> Tensor:
    """Return x [B, S, heads · d] as [B, heads, S, d]."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def seen(q: Tensor, window: int | None = None) -> Tensor:
    """Return [S, S]: which keys each token of q [B, S, …] sees, itself and ``window`` − 1 before it at most."""
    places = torch.arange(q.shape[1], device=q.device)
    age = places[:, None] - places
    return (age >= 0) if window is None else (age >= 0) & (age < window)


def attention(
    op: ops.Attend | ops.AttendTwice | ops.AttendLearned,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Return [B, S, H · d] of q [B, S, H · d], keys and values [B, K, T, d], allowed [S, T]."""
    group = op.heads // op.kv_heads  # heads that share a KV head lie side by side
    queries = by_head(q, op.heads)
    keys, values = (x.repeat_interleave(group, 1) if group > 1 else x for x in (keys, values))
    if cap is None:
        mixed = F.scaled_dot_product_attention(queries, keys, values, allowed, scale=op.scale)
    else:
        scores = cap * torch.tanh(queries @ keys.mT * (op.scale / cap))
        scores = scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)
        mixed = scores.softmax(-1) @ values
    return mixed.transpose(1, 2).flatten(-2)


def act(op: ops.Act, call: Call, x: Tensor) -> Tensor:
    """Return ``op.function`` of x, elementwise."""
    return FUNCTIONS[op.function](x)


def add(op: ops.Add, call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return a + b."""
    return a + b


def mul(op: ops.Mul, call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return a · b; where b is shorter, each of its numbers is for one of the equal parts of a."""
    parts: Tensor = a.unflatten(-1, (b.shape[-1], -1)) * b[..., None]
    return parts.flatten(-2)


def scale(op: ops.Scale, call: Call, x: Tensor) -> Tensor:
    """Return factor · x · w + offset."""
    y = x * op.factor
    return (y if op.weight is None else y * call.row(op.weight, op.at)) + op.offset


def softcap(op: ops.Softcap, call: Call, x: Tensor) -> Tensor:
    """Return cap · tanh(x / cap)."""
    return op.cap * torch.tanh(x / op.cap)


def concat(op: ops.Concat, call: Call, *x: Tensor) -> Tensor:
    """Return the values concatenated."""
    return torch.cat(x, -1)


def cut(op: ops.Slice, call: Call, x: Tensor) -> Tensor:
    """Return columns ``op.start`` … ``op.stop`` − 1 of x."""
    return x[..., op.start : op.stop]


def shift(op: ops.Shift, call: Call, x: Tensor) -> Tensor:
    """Return x one token later; the first one of a window gets zeros."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def experts(op: ops.Experts, call: Call, x: Tensor, scores: Tensor) -> Tensor:
    """Return the sum of the chosen experts' outputs, each times its share."""
    up, down = (
        call.values[f"{name}.weight"].unflatten(0, (scores.shape[-1], -1)) for name in (op.up, op.down)
    )
    p = scores.softmax(-1)
    # As in the engines: of equal shares the first expert is taken.
    order = p.argsort(dim=-1, descending=True, stable=True)[..., : op.top]
    shares = p.gather(-1, order)
    if op.renormalised:
        shares = shares / shares.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in order.unique().tolist():
        *where, place = (order == e).nonzero(as_tuple=True)
        rows = tuple(where)
        h = F.linear(x[rows], up[e])
        if op.gated:
            gate, value = h.chunk(2, -1)
            h = FUNCTIONS[op.function](gate) * value
        else:
            h = FUNCTIONS[op.function](h)
        share = shares[(*rows, place)][:, None]
        y = y.index_put(rows, share * F.linear(h, down[e]), accumulate=True)
    return y


FUNCTIONS: dict[ops.Function, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "exp": torch.exp,
    "relu": F.relu,
}

OPS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "rotate": rotate,
    "attend": attend,
    "attend_twice": attend_twice,
    "attend_learned": attend_learned,
    "act": act,
    "add": add,
    "mul": mul,
    "scale": scale,
    "softcap": softcap,
    "concat": concat,
    "slice": cut,
    "shift": shift,
    "experts": experts,
}
"""The function of each op, by the op's name in a program."""
