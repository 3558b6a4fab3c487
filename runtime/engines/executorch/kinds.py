"""The kinds of methods of a .pte: the stage that each computes, and its inputs and outputs, in order.

A loop of several blocks has a kind for each: ``block`` and ``block1``, ``fill`` and ``fill1``. The host looks up rows
of tables, so methods leave out the ops that do. Where no op of the epilogue sees other rows, it is part of the head,
which runs on the wanted rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...model.ops import Attend, AttendTwice, Embed, Rotate, Shift, with_names, writes
from ...model.program import CacheShape, Program, Stage
from ...model.rotation import Rotation
from ...model.sizes import head_sizes, sizes
from ...model.transform import keys_values, reading
from ..backend import can_fill

CACHED = {"prologue": "prologue", "block": "block", "read": "block", "fill": "block", "epilogue": "epilogue"}
"""By role, the stage of the runtime whose caches its methods have."""


@dataclass(frozen=True)
class RotaryInput:
    """cos and sin [M, 1, dims] of the rotation ``by``: a number for each rotated dim, in the order of the head's dims.

    ``pairs``: neighbouring dims are rotated together; else those of the two halves.
    """

    by: Rotation
    pairs: bool


@dataclass(frozen=True)
class Mask:
    """Which keys an attention sees: the last ``window`` or all (None), those up to the row or all (``both``).

    ``cached``: keys of the cache, and the new ones if it is ``fresh``; else only the new ones of a call. ``prefix``: a
    call with which a cache begins has rows that see each other.
    """

    both: bool
    window: int | None
    cached: bool
    fresh: bool
    prefix: bool = False


@dataclass(frozen=True)
class MethodSignature:
    """The inputs of a method of M rows, in this order, and its outputs.

    Inputs: a state [M, width]; one-hot depths [M, depths] unless 0; cos and sin of each of ``rotary_inputs``; for
    each lane one of each of ``masks``; and for each of ``caches`` and each lane K/V. Outputs: a state [M,
    gives] unless 0, and the new rows [M, heads, d] of K and V of each of ``fresh``.
    """

    width: int
    depths: int
    rotary_inputs: tuple[RotaryInput, ...]
    masks: tuple[Mask, ...]
    caches: tuple[CacheShape, ...]
    gives: int
    fresh: tuple[CacheShape, ...]


def kinds(program: Program) -> list[str]:
    """Return the kinds of methods that a model has, in the order in which a pass runs them."""
    computes = any(not isinstance(op, Embed) for op in program.prologue.ops)
    found = ["prologue"] if computes else []
    numbers = range(len(program.loop.blocks))
    schedule, shared = program.loop.schedule, program.shares_kv
    found += [numbered("block", n) for n in numbers if n in (schedule[:1] if shared else schedule)]
    found += [numbered("read", n) for n in numbers if shared and n in schedule[1:]]
    if can_fill(program):
        found += [numbered("fill", n) for n in numbers if n in schedule]
    found += ["epilogue"] if sees_rows(program.epilogue) else []
    return [*found, *(["head"] if stage_of(program, "head").ops else [])]


def numbered(role: str, block: int) -> str:
    """Return the kind of ``role`` for the loop's block with that number."""
    return f"{role}{block or ''}"


def role(kind: str) -> str:
    """Return the role of a kind: ``block1`` → ``block``."""
    return kind.rstrip("0123456789")


def stage_of(program: Program, kind: str) -> Stage:
    """Return the stage that a method of ``kind`` computes of its state."""
    name = role(kind)
    if name == "head":
        return program.head if sees_rows(program.epilogue) else _joined(program.epilogue, program.head)
    if name == "epilogue":
        return program.epilogue
    if name == "prologue":
        looked_up = tuple(op.y for op in lookups(program))
        ops = tuple(op for op in program.prologue.ops if not isinstance(op, Embed))
        return Stage(looked_up, ops, program.prologue.outputs, program.prologue.layers)
    block = _block(program, kind)
    return {"block": lambda: block, "read": lambda: reading(block), "fill": lambda: keys_values(block)}[
        name
    ]()


def widths(program: Program, kind: str) -> tuple[int, ...]:
    """Return the widths of the values that lie side by side in the input state of ``kind``."""
    if kind == "prologue":
        return tuple(program.matrix(op.table).columns for op in lookups(program))
    if kind == "head" and sees_rows(program.epilogue):
        return head_sizes(program)
    return tuple(carry.width for carry in program.loop.carries)


def head_columns(program: Program) -> list[int]:
    """Return the columns of its state that a head without ops gives."""
    stage, wide = stage_of(program, "head"), widths(program, "head")
    if stage.ops:
        return []
    ends = np.cumsum(wide).tolist()
    spans = {name: range(end - size, end) for name, size, end in zip(stage.inputs, wide, ends, strict=True)}
    return [column for name in stage.outputs for column in spans[name]]


def lookups(program: Program) -> tuple[Embed, ...]:
    """Return the ops whose rows the host looks up, in order."""
    return tuple(op for op in program.prologue.ops if isinstance(op, Embed))


def signature_of(program: Program, kind: str) -> MethodSignature:
    """Return the inputs and outputs of a method of ``kind``."""
    stage, inputs, name = stage_of(program, kind), widths(program, kind), role(kind)
    known = sizes(stage, inputs, program.weights)
    attends = [op for op in stage.ops if isinstance(op, Attend)]
    cached = [op for op in attends if op.cache is not None]
    caches = program.caches(CACHED[name]) if name in CACHED else ()
    looped = CACHED.get(name) == "block" and program.depths > 1 and program.differs(_block(program, kind))
    return MethodSignature(
        sum(inputs),
        program.depths if looped else 0,
        tuple(dict.fromkeys(RotaryInput(op.by, op.pairs) for op in stage.ops if isinstance(op, Rotate))),
        tuple(dict.fromkeys(mask_of(program, op) for op in attends)),
        caches if cached else (),
        0 if name == "fill" else sum(known[value] for value in stage.outputs),
        caches if name == "fill" or any(op.k is not None for op in cached) else (),
    )


def mask_of(program: Program, op: Attend) -> Mask:
    """Return the mask of ``op``."""
    window = None if op.window is None or op.window >= program.context_length else op.window
    return Mask(op.mask == "both", window, op.cache is not None, op.k is not None, op.mask == "prefix")


def whole_lanes(program: Program) -> bool:
    """Return whether all tokens of a lane have to be in one call: an attention has no cache of those before."""
    return any(isinstance(op, Attend) and op.cache is None for stage in program.stages for op in stage.ops)


def sees_rows(stage: Stage) -> bool:
    """Return whether an op of ``stage`` needs other rows than its own, or their positions."""
    return any(isinstance(op, Attend | AttendTwice | Shift | Rotate | Embed) for op in stage.ops)


def _block(program: Program, kind: str) -> Stage:
    return program.loop.blocks[int(kind.removeprefix(role(kind)) or 0)]


def _joined(first: Stage, then: Stage) -> Stage:
    """Return ``first`` followed by ``then`` as one stage."""
    taken = {*first.inputs, *(value for op in first.ops for value in writes(op))}
    names = {value: f"head/{value}" for op in then.ops for value in writes(op) if value in taken}
    names |= dict(zip(then.inputs, first.outputs, strict=True))
    ops = tuple(with_names(op, names) for op in then.ops)
    return Stage(first.inputs, first.ops + ops, tuple(names.get(value, value) for value in then.outputs))
