"""Transformer layers as functions that write ops: what families compose their programs of.

A layer is attention and an MLP with norms and residuals around them; the functions here differ in where those are. Each
takes the name of the value that enters the layer and returns the name of the one that leaves it. ``prefix`` is that of
the layer's weights, ``at`` the depth whose weights apply (None: that of the row's lane).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .ops import Act, Add, Attend, Function, Linear, Mul, Norm, Op, Rotate
from .program import Stage
from .rotation import Rotation
from .weights import Delta, Matrix, Vector, Weight

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Attention:
    """Sizes and rules of an attention, as ``ops.Attend`` has them.

    ``rotation`` and ``pairs`` are those of ``ops.Rotate``; None is no position embedding. ``scale`` None is
    1/√head_dim. ``cached``: K/V are kept for the tokens that follow. ``qk_norm``: q and k are normed before
    they are rotated, each head by itself or over the full width. ``bias`` is of q, k and v, ``out_bias`` of o.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotation: Rotation | None
    pairs: bool = False
    scale: float | None = None
    window: int | None = None
    cap: float | None = None
    mask: Literal["causal", "both", "prefix"] = "causal"
    slot: Literal["own", "first"] = "own"
    cached: bool = True
    qk_norm: Literal["none", "heads", "width"] = "none"
    bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class Mlp:
    """An MLP of inner width ``size``: down(function(gate x) · up x) where ``gated``, else down(function(up x))."""

    size: int
    function: Function = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class NormKind:
    """The kind, epsilon and bias of a model's norms."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """What the layers of a segment have in common, and what differs between its ``depths``.

    ``norm_rows``: norms have a row for each depth. ``own_attention``: q, k, v and o have a matrix for each depth.
    ``deltas`` are by projection.
    """

    width: int
    attention: Attention
    mlp: Mlp
    norm: NormKind
    depths: int = 1
    norm_rows: bool = False
    own_attention: bool = False
    deltas: Mapping[str, Delta] = field(default_factory=dict)


class Writer:
    """Collects the ops of one stage: names for values, numbers for caches, and the weights that the ops use."""

    def __init__(self, weights: dict[str, Weight], *inputs: str) -> None:
        """``weights``: those of the program, shared by its stages and added to. ``inputs``: the stage's."""
        self.weights, self.inputs = weights, inputs
        self._ops: list[Op] = []
        self._layers: list[str] = []
        self._caches = 0

    def stage(self, *outputs: str) -> Stage:
        """Return the stage that was written, with ``outputs``."""
        return Stage(self.inputs, tuple(self._ops), outputs, tuple(self._layers))

    def add(self, op: Op) -> None:
        """Append ``op``."""
        self._ops.append(op)

    def enter_layer(self, x: str) -> None:
        """Begin the next layer, which the value ``x`` enters."""
        self._layers.append(x)

    def name(self, value: str) -> str:
        """Return a name for ``value`` that is unique to the current layer."""
        return f"{len(self._layers) - 1}.{value}" if self._layers else value

    def cache(self) -> int:
        """Return the number of a new cache of the stage."""
        self._caches += 1
        return self._caches - 1

    def weight(self, name: str, weight: Weight) -> str:
        """Declare the weight ``name`` and return the name; ValueError when it was declared otherwise before."""
        if self.weights.setdefault(name, weight) != weight:
            raise ValueError(f"the weight {name} is {self.weights[name]}, and now {weight}")
        return name

    def norm(
        self,
        x: str,
        y: str,
        weight: str,
        size: int,
        kind: NormKind,
        rows: int | None = None,
        at: int | None = None,
        groups: int = 1,
    ) -> str:
        """Write the norm of x [N, size] to ``y``, with weights [size / groups] or ``rows`` of them; return ``y``."""
        vector = Vector(size // groups, rows)
        self.weight(weight, vector)
        bias = self.weight(f"{weight}_bias", vector) if kind.bias else None
        self.add(Norm(x, y, kind.kind, kind.eps, weight, bias, groups, at if rows else None))
        return y

    def linear(self, x: str, y: tuple[str, ...], weight: str, matrix: Matrix, at: int | None = None) -> None:
        """Write x times ``matrix`` to ``y``, a value for each of its parts."""
        self.weight(weight, matrix)
        own = matrix.copies > 1 or matrix.deltas
        self.add(Linear(x, y, weight, at=at if own else None))


def llama(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None, sandwich: bool = False) -> str:
    """Write x + attention(norm x), then x + mlp(norm x); ``sandwich``: the added values are normed too (Ouro, Gemma
    2)."""
    w.enter_layer(x)
    h = norm(w, x, "h", prefix, "attention_norm", layer, at)
    a = attention(w, h, prefix, layer, at)
    if sandwich:
        a = norm(w, a, "a_normed", prefix, "attention_out_norm", layer, at)
    x = add(w, x, a, "x")
    m = mlp(w, norm(w, x, "g", prefix, "mlp_norm", layer, at), prefix, layer, at)
    if sandwich:
        m = norm(w, m, "m_normed", prefix, "mlp_out_norm", layer, at)
    return add(w, x, m, "out")


def parallel(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None) -> str:
    """Write x + attention(norm x) + mlp(norm x), each with a norm of its own (GPT-NeoX, GPT-J)."""
    w.enter_layer(x)
    a = attention(w, norm(w, x, "h", prefix, "attention_norm", layer, at), prefix, layer, at)
    m = mlp(w, norm(w, x, "g", prefix, "mlp_norm", layer, at), prefix, layer, at)
    return add(w, x, add(w, a, m, "am"), "out")


def post_norm(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None) -> str:
    """Write norm(x + attention x), then norm(x + mlp x) (the original Transformer, ALBERT)."""
    w.enter_layer(x)
    x = norm(w, add(w, x, attention(w, x, prefix, layer, at), "xa"), "x", prefix, "attention_norm", layer, at)
    return norm(w, add(w, x, mlp(w, x, prefix, layer, at), "xm"), "out", prefix, "mlp_norm", layer, at)


def output_norm(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None) -> str:
    """Write x + norm(attention x), then x + norm(mlp x) (OLMo 2)."""
    w.enter_layer(x)
    a = norm(w, attention(w, x, prefix, layer, at), "a_normed", prefix, "attention_out_norm", layer, at)
    x = add(w, x, a, "x")
    m = norm(w, mlp(w, x, prefix, layer, at), "m_normed", prefix, "mlp_out_norm", layer, at)
    return add(w, x, m, "out")


def attention(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None) -> str:
    """Write the attention of x [N, D] → [N, D]: q, k and v from one stored matrix, rotated, attended to, through o."""
    a = layer.attention
    sizes = {
        "q_proj": a.heads * a.head_dim,
        "k_proj": a.kv_heads * a.head_dim,
        "v_proj": a.kv_heads * a.head_dim,
    }
    q, k, v = w.name("q"), w.name("k"), w.name("v")
    w.linear(x, (q, k, v), f"{prefix}.qkv_proj", matrix(layer, sizes, layer.width, a.bias), at)
    if a.qk_norm != "none":
        each = a.qk_norm == "heads"
        for value, heads, side in ((q, a.heads, "q"), (k, a.kv_heads, "k")):
            w.norm(
                value, f"{value}_normed", f"{prefix}.{side}_norm", heads * a.head_dim, layer.norm,
                layer.depths if layer.norm_rows else None, at, groups=heads if each else 1,
            )  # fmt: skip
        q, k = f"{q}_normed", f"{k}_normed"
    if a.rotation is not None:
        w.add(Rotate(q, f"{q}_turned", a.heads, a.rotation, a.pairs))
        w.add(Rotate(k, f"{k}_turned", a.kv_heads, a.rotation, a.pairs))
        q, k = f"{q}_turned", f"{k}_turned"
    mixed, out = w.name("mixed"), w.name("a")
    scale = a.head_dim**-0.5 if a.scale is None else a.scale
    cache = w.cache() if a.cached else None
    w.add(
        Attend(q, k, v, mixed, a.heads, a.kv_heads, a.head_dim, scale, cache, a.mask, a.window, a.cap, a.slot)
    )
    w.linear(
        mixed, (out,), f"{prefix}.o_proj",
        matrix(layer, {"o_proj": layer.width}, a.heads * a.head_dim, a.out_bias), at,
    )  # fmt: skip
    return out


def mlp(w: Writer, x: str, prefix: str, layer: Layer, at: int | None = None) -> str:
    """Write the MLP of x [N, D] → [N, D]."""
    m = layer.mlp
    parts = ("gate_proj", "up_proj") if m.gated else ("up_proj",)
    inner = tuple(w.name(part.removesuffix("_proj")) for part in parts)
    up = matrix(layer, dict.fromkeys(parts, m.size), layer.width, m.bias)
    w.linear(x, inner, f"{prefix}.gate_up_proj" if m.gated else f"{prefix}.up_proj", up, at)
    y = w.name("act")
    w.add(Act(inner[0], y, m.function))
    if m.gated:
        w.add(Mul(y, inner[1], w.name("gated")))
        y = w.name("gated")
    out = w.name("m")
    w.linear(y, (out,), f"{prefix}.down_proj", matrix(layer, {"down_proj": layer.width}, m.size, m.bias), at)
    return out


def matrix(layer: Layer, parts: dict[str, int], columns: int, bias: bool) -> Matrix:
    """Return the matrix of ``parts`` (rows by name) as ``layer`` stores it, with copies and deltas for depths."""
    deltas = {part: layer.deltas[part] for part in parts if part in layer.deltas}
    own = layer.own_attention and not set(parts).isdisjoint(ATTENTION)
    return Matrix(
        parts,
        columns,
        bias,
        copies=layer.depths if own else 1,
        deltas=deltas,
        depths=layer.depths if deltas else 1,
    )


def norm(w: Writer, x: str, y: str, prefix: str, name: str, layer: Layer, at: int | None) -> str:
    """Write a norm of the layer over its full width."""
    rows = layer.depths if layer.norm_rows else None
    return w.norm(x, w.name(y), f"{prefix}.{name}", layer.width, layer.norm, rows, at)


def add(w: Writer, a: str, b: str, y: str) -> str:
    """Write a + b to ``y``."""
    w.add(Add(a, b, w.name(y)))
    return w.name(y)
