"""Checks of a program that was read from a file: it is run, and whoever wrote the file is not trusted.

A problem is one line that names the stage and the op. The time that checking takes is in proportion to the file, and
nothing is allocated by the sizes that it declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .limits import FINITE, MAX_LAYERS, MAX_NUMBERS, MAX_OPS, MAX_SIZE, nameable, within
from .op_checks import HOST_SIZES, WeightUses, depths_of
from .program import Loop, Program, Routing
from .sizes import IDS
from .stage_checks import StageFindings, idle_problems, stage_problems
from .weights import Vector, Weight, tensors


def problems(program: Program) -> Iterator[str]:
    """Yield what is wrong with ``program``; problems that would only follow from an earlier one are left out."""
    for check in (_number_problems, _weights_problems, _loop_problems, _amount_problems, _stages_problems):
        sound = True
        for problem in check(program):
            sound = False
            yield problem
        if not sound:
            return


def _number_problems(program: Program) -> Iterator[str]:
    yield from nameable("family", program.family)
    yield from within("vocab_size", program.vocab_size, 1, MAX_SIZE)
    yield from within("context_length", program.context_length, 1, MAX_SIZE)
    for name, ids in (
        ("bos_token_id", (program.bos_token_id or 0,)),
        ("eos_token_ids", program.eos_token_ids),
    ):
        for number in ids:
            yield from within(name, number, 0, MAX_SIZE)


def _weights_problems(program: Program) -> Iterator[str]:
    """Yield what is wrong with the weights: their own numbers, tensors that are too large, two of one name."""
    for name, weight in program.weights.items():
        if problem := next(_weight_problems(name, weight), None):
            yield problem
            return
    stored, canonical = set[str](), set[str]()
    for name, tensor in tensors(program.weights):
        if tensor.numbers > MAX_NUMBERS:
            shape = " × ".join(str(size) for size in tensor.shape)
            yield f"weights have a tensor {name} of {shape}, more than {MAX_NUMBERS} numbers"
        for names, new in ((stored, name), *((canonical, part) for part in tensor.parts)):
            if new in names:
                yield f"weights have two tensors with the name {new}"
            names.add(new)


def _weight_problems(name: str, weight: Weight) -> Iterator[str]:
    yield from nameable("the name of a weight", name)
    if isinstance(weight, Vector):
        yield from within(f"the size of weight {name}", weight.size, 1, MAX_SIZE)
        yield from within(
            f"the rows of weight {name}", 1 if weight.rows is None else weight.rows, 1, MAX_SIZE
        )
        return
    for part, rows in weight.parts.items():
        yield from nameable(f"a part of weight {name}", part)
        yield from within(f"the rows of part {part} of weight {name}", rows, 1, MAX_SIZE)
    for what in ("rows", "columns", "copies", "depths"):
        yield from within(f"the {what} of weight {name}", getattr(weight, what), 1, MAX_SIZE)
    for part, delta in weight.deltas.items():
        yield from nameable(f"a delta of weight {name}", part)
        if part not in weight.parts:
            yield f"weight {name} has a delta of {part}, which is none of its parts"
        yield from within(f"the rank of delta {part} of weight {name}", delta.rank, 1, MAX_SIZE)
    if weight.depths > 1 and not weight.deltas:
        yield f"weight {name} is of {weight.depths} depths, and has no deltas that differ between them"
    if weight.deltas and weight.copies not in (1, weight.depths):
        yield f"weight {name} has {weight.copies} copies and deltas of {weight.depths} depths, wanted as many"


def _loop_problems(program: Program) -> Iterator[str]:
    loop: Loop = program.loop
    yield from within("the number of loop.carries", len(loop.carries), 1, MAX_LAYERS)
    for carry in loop.carries:
        yield from nameable("the name of a carry", carry.name)
        yield from within("the width of a carry", carry.width, 1, MAX_SIZE)
    yield from within("the width of loop.carries together", sum(c.width for c in loop.carries), 1, MAX_SIZE)
    if len({carry.name for carry in loop.carries}) < len(loop.carries):
        yield "loop.carries have two of one name"
    yield from within("the number of depths in loop.schedule", len(loop.schedule), 1, MAX_LAYERS)
    for block in loop.schedule:
        yield from within("a block in loop.schedule", block, 0, len(loop.blocks) - 1)
    if unused := set(range(len(loop.blocks))) - set(loop.schedule):
        yield f"loop.schedule never runs block {min(unused)} of {len(loop.blocks)}"


def _amount_problems(program: Program) -> Iterator[str]:
    blocks = [len(block.ops) for block in program.loop.blocks]
    ops = sum(blocks[block] for block in program.loop.schedule)
    ops += sum(len(stage.ops) for stage in (program.prologue, program.epilogue, program.head))
    yield from within("the number of layers that are applied", program.applied_layers, 1, MAX_LAYERS)
    yield from within("the number of ops that are applied", ops, 1, MAX_OPS)
    if program.routing is not None:
        yield from _routing_problems(program.routing, program)


def _routing_problems(routing: Routing, program: Program) -> Iterator[str]:
    depths = program.depths
    if depths < 2:
        yield f"routing is for models of several depths, this one has {depths}"
    if len(program.loop.carries) > 1:
        yield f"routing is for loops of one carry, this one has {len(program.loop.carries)}"
    if program.prefix_lm:
        yield "routing is for models whose tokens see earlier ones only, and this one has mask prefix"
    if program.encoder:
        yield "routing is for models whose attention has caches, and this one's has none"
    yield from within("routing.alpha", routing.alpha, -FINITE, FINITE)
    yield from within("routing.temperature", routing.temperature, 1e-9, FINITE)
    if routing.capacity and len(routing.capacity) != depths:
        yield f"routing.capacity has {len(routing.capacity)} shares, wanted one for each of {depths} depths"
    for share in routing.capacity:
        yield from within("routing.capacity", share, 0, 1)


def _stages_problems(program: Program) -> Iterator[str]:
    carries = tuple(carry.width for carry in program.loop.carries)
    blocks = program.loop.blocks
    names = ["block"] if len(blocks) == 1 else [f"block {number}" for number in range(len(blocks))]
    found = StageFindings(program)
    for value in program.prologue.inputs:
        if value not in HOST_SIZES:
            yield from nameable("an input of prologue", value)
            yield f"prologue has the input {value}, wanted {', '.join(HOST_SIZES)} at most"
            return
    yield from stage_problems("prologue", program.prologue, (IDS,) * len(program.prologue.inputs), found)
    for name, block in zip(names, blocks, strict=True):
        yield from stage_problems(name, block, carries, found)
    yield from stage_problems("epilogue", program.epilogue, carries, found)
    if len(found.gives) < len(blocks) + 2:
        return
    for name in ("prologue", *names):
        if (gives := found.gives[name]) != carries:
            yield f"{name} gives {_widths(gives)}, wanted the loop's carries, {_widths(carries)}"
    yield from stage_problems("head", program.head, found.gives["epilogue"], found)
    if "head" not in found.gives:
        return
    wanted = (program.vocab_size,) if program.head.ops or not program.encoder else found.gives["epilogue"][:1]
    if (gives := found.gives["head"]) != wanted:
        yield f"head gives {_widths(gives)}, wanted logits, [N, {program.vocab_size}]"
    yield from _cache_problems(names, found)
    for name, stage in zip(("prologue", *names, "epilogue", "head"), program.stages, strict=True):
        yield from idle_problems(name, stage)
    for name, weight in program.weights.items():
        yield from _use_problems(name, weight, found.uses.get(name), program)


def _widths(sizes: Sequence[int]) -> str:
    """Return some sizes of values as a text, the first few of them."""
    shapes = [f"[N, {size}]" if size else "ids" for size in sizes[:4]]
    return f"{', '.join(shapes) or 'nothing'}{' …' if len(sizes) > 4 else ''}"


def _cache_problems(names: Sequence[str], found: StageFindings) -> Iterator[str]:
    """Yield what is wrong with the loop's caches: blocks must use the same, and share all or none between depths."""
    first, *others = names
    for name in others:
        if found.caches[name] != found.caches[first]:
            yield f"{name} has other caches than {first}, wanted as many, of the same heads, sizes, windows and slots"
    slots = {cache.slot for cache in found.caches[first] if cache.slot}
    if len(slots) > 1:
        yield f"{first} has caches of slot {' and '.join(sorted(slots))}, wanted the same for all"


def _use_problems(name: str, weight: Weight, uses: WeightUses | None, program: Program) -> Iterator[str]:
    """Yield what is wrong with a weight's number of depths: wanted are those of the loop, or those that ops name."""
    if uses is None:
        yield f"weight {name} is used by no op"
        return
    own = depths_of(weight)
    if own is None or uses.whole:
        return
    if uses.looped and own != program.depths:
        yield f"weight {name} is of {own} depths, wanted {program.depths}, those of the loop"
    if uses.looped and program.loop.open_ended:
        yield f"weight {name} is of {own} depths, and loop.open_ended says that there may be more"
    if not uses.looped and len(uses.at) < own:
        yield f"weight {name} is of {own} depths, and ops use {len(uses.at)} of them"
