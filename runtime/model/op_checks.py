"""Checks of one op: its numbers, its sizes, and how many depths its weights have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .limits import FINITE, MAX_LAYERS, MAX_SIZE, nameable, within
from .ops import Attend, AttendLearned, AttendTwice, Embed, Experts, Op, Rotate, Shift, weight_fields, writes
from .program import Program
from .rotation import Llama3, Rotation, Yarn
from .sizes import OpMismatchError, ValueSizes
from .weights import Vector, Weight

_SIZE = (1, MAX_SIZE)
_FIRST = (0, MAX_SIZE)
_FACTOR = (-FINITE, FINITE)
_NUMBERS: dict[str, tuple[float, float]] = {
    "eps": (0, 1),
    "groups": _SIZE,
    "first": _FIRST,
    "at": (0, MAX_LAYERS),
    "heads": _SIZE,
    "kv_heads": _SIZE,
    "head_dim": _SIZE,
    "scale": _FACTOR,
    "cache": (0, MAX_LAYERS),
    "window": _SIZE,
    "cap": (1e-6, FINITE),
    "factor": _FACTOR,
    "offset": _FACTOR,
    "start": _FIRST,
    "stop": _SIZE,
    "top": _SIZE,
}
"""The range of the numbers of ops by field name; a name means the same in every op."""
_SCALE = (1e-6, 1e6)
_SCALING: dict[str, tuple[float, float]] = {
    "factor": _SCALE,
    "low_freq_factor": _SCALE,
    "high_freq_factor": _SCALE,
    "original_context": _SIZE,
    "amplitude": _SCALE,
    "beta_fast": _SCALE,
    "beta_slow": _SCALE,
}
_OTHERS = "the head has some tokens only: none of its ops knows their positions, or reads other tokens"
HOST_SIZES = {"ids": "vocab_size", "positions": "context_length", "types": "token_types"}
"""What the host gives the prologue as whole numbers [N], and for each the end of its range."""


@dataclass
class WeightUses:
    """How ops use a weight that differs between depths: at a fixed depth, at that of the lane, or whole."""

    at: set[int] = field(default_factory=set)
    looped: bool = False
    whole: bool = False


def op_problems(
    stage: str, op: Op, known: ValueSizes, program: Program, uses: dict[str, WeightUses]
) -> Iterator[str]:
    """Yield what is wrong with ``op`` of ``stage``; problems after the first may only follow from it.

    The values that it writes are added to ``known``, and its uses of weights to ``uses``.
    """
    for value in writes(op):
        yield from nameable("a value", value)
    for number, (low, high) in _NUMBERS.items():
        if (found := getattr(op, number, None)) is not None:
            yield from within(number, found, low, high)
    if isinstance(op, Rotate):
        yield from _rotation_problems(op.by)
    try:
        known.write(op)
    except OpMismatchError as misfit:
        yield str(misfit)
        return
    for value in writes(op):
        yield from within(f"the size of {value}", known.sizes[value], *_SIZE)
    if isinstance(op, Embed):
        wanted, rows = (getattr(program, HOST_SIZES[op.ids]), known.matrix(op.table).rows)
        if rows != wanted and not (
            op.ids == "positions" and rows > wanted
        ):  # the context may have been shortened
            yield f"table {op.table} has {rows} rows, wanted one for each of {wanted} {op.ids}"
    if isinstance(op, Attend | AttendTwice):
        yield from _attention_problems(stage, op, program)
    if isinstance(op, Shift | Rotate) and stage == "head":
        yield _OTHERS
    yield from _depth_problems(stage, op, program, uses)


def depths_of(weight: Weight) -> int | None:
    """Return how many depths ``weight`` has values of its own for; None when all depths have the same."""
    if isinstance(weight, Vector):
        return weight.rows
    if weight.deltas:
        return weight.depths
    return weight.copies if weight.copies > 1 else None


def _rotation_problems(rotation: Rotation) -> Iterator[str]:
    yield from within("by.dims", rotation.dims, 2, MAX_SIZE)
    yield from within("by.theta", rotation.theta, 1e-6, FINITE)
    scaling = rotation.scaling
    for number, (low, high) in _SCALING.items():
        if (found := getattr(scaling, number, None)) is not None:
            yield from within(f"by.scaling.{number}", found, low, high)
    if isinstance(scaling, Llama3) and scaling.low_freq_factor >= scaling.high_freq_factor:
        yield "by.scaling.low_freq_factor is not below high_freq_factor: no waves are between them"
    if isinstance(scaling, Yarn):
        yield from within("by.theta, with yarn,", rotation.theta, 1.001, FINITE)
        if scaling.beta_slow >= scaling.beta_fast:
            yield "by.scaling.beta_slow is not below beta_fast: no waves are between them"


def _attention_problems(stage: str, op: Attend | AttendTwice, program: Program) -> Iterator[str]:
    if stage == "head":
        yield _OTHERS
    if op.window is not None:
        yield from within("window", op.window, 1, program.context_length)
    if isinstance(op, AttendTwice):
        if not stage.startswith("block"):
            yield "reads the keys of depth 0 and of its own: wanted in a block of the loop"
        return
    if op.k is None or op.v is None:
        yield "has no k and v; only what is made of a block for later depths may do without"
    if op.slot == "first" and (op.cache is None or not stage.startswith("block")):
        yield "slot is first, and it has no cache that the loop's depths could share"
    if op.mask == "both" and op.cache is not None:
        yield "mask is both, and it has a cache: what a token sees would depend on how a text is cut into calls"


def _depth_problems(stage: str, op: Op, program: Program, uses: dict[str, WeightUses]) -> Iterator[str]:
    differs, at = False, getattr(op, "at", None)
    for _, name in weight_fields(op):
        used, depths = uses.setdefault(name, WeightUses()), depths_of(program.weights[name])
        if depths is None or isinstance(op, Experts | AttendLearned):
            used.whole = True
            continue
        differs = True
        if at is not None:
            yield from within(f"at, a depth of weight {name},", at, 0, depths - 1)
            used.at.add(at)
        elif not stage.startswith("block"):
            yield f"weight {name} differs between depths, and outside of the loop there are none: wanted at"
        used.looped |= at is None
    if at is not None and not differs:
        yield f"at is {at}, and no weight of it differs between depths"
