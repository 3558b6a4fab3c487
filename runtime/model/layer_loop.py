"""A loop of layers: a model whose layers repeat one by one, with a depth for each of them that is applied.

MobileLLM-LS runs its layers 0, 0, 1, 1, …: no stack repeats that the host could loop over, so they are one block of
one depth. Here each layer is a block, and the schedule is the order in which they are applied: a token may stop behind
any of them, at the price of a call for each.
"""

from __future__ import annotations

from msgspec import structs

from ..errors import UsageError
from .limits import MAX_LAYERS
from .ops import Attend, AttendTwice, Op, Shift, reads, with_names, writes
from .program import Loop, Program, Stage


def layer_loop(program: Program) -> Program:
    """Return the same model with a depth for each layer that its one block applies, equal ones being one block.

    UsageError, one line, for a model that has a loop, or whose layers are not in a row.
    """
    if program.depths != 1 or program.routing is not None or program.exit_gate:
        raise UsageError(
            f"the model has a loop of {program.depths} depths already, and a loop of layers is for models without; "
            "leave --loop out"
        )
    block = program.loop.blocks[0]
    pieces = _pieces(block)
    if not 2 <= len(pieces) <= MAX_LAYERS or len(program.loop.carries) != 1:
        raise UsageError(
            f"the model has {len(pieces)} layers in a row, and a loop of them needs 2; leave --loop out"
        )
    found: dict[Stage, int] = {}
    schedule = tuple(found.setdefault(piece, len(found)) for piece in pieces)
    return structs.replace(program, loop=Loop(program.loop.carries, tuple(found), schedule))


def _pieces(block: Stage) -> list[Stage]:
    """Return a stage for each layer of ``block``, from its state to its state; equal layers are equal stages."""
    starts = [0]
    made = {value: number for number, op in enumerate(block.ops) for value in writes(op)}
    starts += [made[value] + 1 for value in block.layers[1:]]
    ends = [*starts[1:], len(block.ops)]
    return [
        _piece(block, entered, left, block.ops[start:end])
        for entered, left, start, end in zip(
            block.layers, (*block.layers[1:], *block.outputs), starts, ends, strict=True
        )
    ]


def _piece(block: Stage, entered: str, left: str, ops: tuple[Op, ...]) -> Stage:
    names = {entered: block.inputs[0]}
    names |= {value: f"0.{value.partition('.')[2] or value}" for op in ops for value in writes(op)}
    if strange := next((value for op in ops for value in reads(op) if value not in names), None):
        raise UsageError(
            f"a layer of the model reads {strange}, which is made before the layer; a loop of layers is for those that "
            "read what the one before them made; leave --loop out"
        )
    renamed, caches = list[Op](), 0
    for op in (with_names(op, names) for op in ops):
        if isinstance(op, Attend | AttendTwice) and op.cache is not None:
            op, caches = structs.replace(op, cache=caches), caches + 1
        elif isinstance(op, Shift):
            raise UsageError("a layer of the model keeps a row of the token before; leave --loop out")
        renamed.append(op)
    return Stage(block.inputs, tuple(renamed), (names[left],), (block.inputs[0],))
