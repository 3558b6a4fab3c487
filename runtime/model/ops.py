"""The ops of a program: frozen data, each with its shapes and its formula.

N rows (tokens of any lanes), D width, H heads, K KV heads, d size of a head, T keys that a row sees, V vocabulary.
Ops name the values that they read and those that they write; every value is [N, size] float32, but for ``ids`` [N]
int64. They name weights too: what a weight is at a depth is the weight's to say (``weights.py``). ``at`` is the depth
whose rows and deltas of a weight apply; None is the depth of the row's lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, structs

from .rotation import Rotation

Function = Literal["silu", "gelu", "gelu_tanh", "relu2", "sigmoid", "tanh", "softplus", "exp", "relu"]


def _tag(name: str) -> str:
    """Return the tag of an op's class in files: AttendTwice → attend_twice."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class _Op(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="op", tag=_tag):
    """The base of all ops: unknown fields are refused, and the field ``op`` names the kind."""


class Embed(_Op, frozen=True):
    """ids [N] → y [N, D]: y = scale · table[ids]."""

    ids: str
    y: str
    table: str
    scale: float = 1.0


class Norm(_Op, frozen=True):
    """x [N, D] → y [N, D], over each of ``groups`` equal parts of D by itself.

    rms: x / √(mean x² + eps); layer: (x − mean x) / √(var x + eps); then · w + b [D / groups], where there are any.
    """

    x: str
    y: str
    kind: Literal["rms", "layer"]
    eps: float
    weight: str | None = None
    bias: str | None = None
    groups: int = 1
    at: int | None = None


class Linear(_Op, frozen=True):
    """x [N, in] → y[i] [N, outᵢ]: W x + b, plus the weight's delta at the depth, cut into the parts of the matrix.

    ``y`` are the parts from ``first`` on, in the order in which the matrix has them.
    """

    x: str
    y: tuple[str, ...]
    weight: str
    first: int = 0
    at: int | None = None


class Rotate(_Op, frozen=True):
    """x [N, heads · d] → y: rotary embedding of the first ``by.dims`` of each head (RoPE, arXiv 2104.09864).

    The pair (i, i + dims/2), or (2i, 2i + 1) where ``pairs``, is rotated by the angle position · frequency.
    """

    x: str
    y: str
    heads: int
    by: Rotation
    pairs: bool = False


class Attend(_Op, frozen=True):
    """q [N, H · d], k, v [N, K · d] → y [N, H · d]: softmax(mask(cap(scale · q kᵀ))) v over the keys of a lane.

    New k and v join those of the lane's slot in ``cache``, a number within the stage, first; without a cache the new
    ones are all there are. k and v None: the slot has them already. ``causal``: a row sees what is at its position or
    before it; ``both``: every row; ``prefix``: what is before it, and every row of the prompt's first block.
    ``window``: the last so many only. ``cap``: c · tanh(x / c) on the scores. ``slot``: depths have K/V of their
    ``own``, or read those of the ``first`` depth, and then k and v are those of depth 0 alone.
    """

    q: str
    k: str | None
    v: str | None
    y: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cache: int | None
    mask: Literal["causal", "both", "prefix"] = "causal"
    window: int | None = None
    cap: float | None = None
    slot: Literal["own", "first"] = "own"


class AttendTwice(_Op, frozen=True):
    """As ``Attend``, over depth 0's keys and over the last ``window`` of its own: g · a₀ + (1 − g) · a₁, g [N, H].

    At depth 0 there is one slot, and y = a₀ (PLT, arXiv 2510.24824, section 3.3).
    """

    q: str
    k: str
    v: str
    gate: str
    y: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cache: int
    window: int


class AttendLearned(_Op, frozen=True):
    """q [N, H · d] → y [N, H · d]: softmax(scale · q Kᵀ) V over P learned keys and values, [P, K · d] each."""

    q: str
    y: str
    keys: str
    values: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float


class Act(_Op, frozen=True):
    """x → y, elementwise; gelu is the exact one, relu is max(x, 0), relu2 its square."""

    x: str
    y: str
    function: Function


class Add(_Op, frozen=True):
    """a + b → y."""

    a: str
    b: str
    y: str


class Mul(_Op, frozen=True):
    """a · b → y, elementwise; b may be [N, G] with G a divisor of a's size: a number for each of G parts."""

    a: str
    b: str
    y: str


class Scale(_Op, frozen=True):
    """x [N, D] → y: factor · x · w + offset, w [D] where there is one."""

    x: str
    y: str
    factor: float = 1.0
    offset: float = 0.0
    weight: str | None = None
    at: int | None = None


class Softcap(_Op, frozen=True):
    """cap · tanh(x / cap) → y."""

    x: str
    y: str
    cap: float


class Concat(_Op, frozen=True):
    """x[i] [N, aᵢ] → y [N, Σ aᵢ]."""

    x: tuple[str, ...]
    y: str


class Slice(_Op, frozen=True):
    """x [N, a] → y [N, stop − start]: columns ``start`` … ``stop`` − 1."""

    x: str
    y: str
    start: int
    stop: int


class Shift(_Op, frozen=True):
    """x [N, D] → y: row t gets row t − 1 of its lane. The first gets what ``cache`` keeps of the call before, or zeros.

    ``cache`` is a number within the stage, of those that keep the last row of a lane.
    """

    x: str
    y: str
    cache: int


class Experts(_Op, frozen=True):
    """x [N, D], scores [N, X] → y [N, D]: Σ pₑ · down_e(act(up_e x)) over the ``top`` largest of p = softmax(scores).

    ``gated``: up_e x are two halves, and act(first) · second goes down. ``renormalised``: the chosen p sum to 1. The
    matrices of all X experts lie one under the other in ``up`` and in ``down``.
    """

    x: str
    scores: str
    y: str
    up: str
    down: str
    top: int
    function: Function
    gated: bool = False
    renormalised: bool = True


Op = (
    Embed
    | Norm
    | Linear
    | Rotate
    | Attend
    | AttendTwice
    | AttendLearned
    | Act
    | Add
    | Mul
    | Scale
    | Softcap
    | Concat
    | Slice
    | Shift
    | Experts
)

_READ = ("ids", "x", "q", "k", "v", "a", "b", "gate", "scores")
_WEIGHTS = ("table", "weight", "bias", "keys", "values", "up", "down")


def reads(op: Op) -> tuple[str, ...]:
    """Return the names of the values that ``op`` reads."""
    return tuple(name for field in _READ for name in _named(op, field))


def writes(op: Op) -> tuple[str, ...]:
    """Return the names of the values that ``op`` writes."""
    return _named(op, "y")


def weight_fields(op: Op) -> tuple[tuple[str, str], ...]:
    """Return (field, weight's name) for each weight that ``op`` uses."""
    return tuple((field, name) for field in _WEIGHTS for name in _named(op, field))


def with_names(op: Op, names: Mapping[str, str]) -> Op:
    """Return ``op`` with the values that it reads or writes renamed by ``names``."""
    changed: dict[str, str | tuple[str, ...]] = {}
    for field in (*_READ, "y"):
        value = getattr(op, field, None)
        if isinstance(value, tuple):
            changed[field] = tuple(names.get(v, v) for v in value)
        elif value is not None:
            changed[field] = names.get(value, value)
    return structs.replace(op, **changed)


def kind(op: Op) -> str:
    """Return the name of the kind of ``op``, as programs and tables of lowerings have it."""
    name = op.__struct_config__.tag
    assert isinstance(name, str)
    return name


def _named(op: Op, field: str) -> tuple[str, ...]:
    value: str | tuple[str, ...] | None = getattr(op, field, None)
    return (value,) if isinstance(value, str) else value or ()
