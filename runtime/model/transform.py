"""Programs made from programs: slices of a block, and the loop written out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import structs

from .ops import Attend, AttendTwice, Linear, Op, Shift, reads, weight_fields, with_names, writes
from .program import Loop, Program, Stage
from .weights import Matrix, Vector, Weight, sibling


@dataclass(frozen=True)
class Source:
    """Where a tensor of an unrolled model is from: the canonical ``tensor`` of ``weight``, as it is at depth ``at``."""

    weight: str
    tensor: str
    at: int | None


def keys_values(stage: Stage) -> Stage:
    """What of a block makes K and V, as if its first input entered every layer: for tokens that skip its depth.

    The outputs are the K and V of each cache, as an attention takes them, in the order of the caches. Copying the state
    of an early exit to the layers that it skips is CALM's (arXiv 2207.07061, section 3.1.1).
    """
    state, ops, outputs = stage.inputs[0], list[Op](), list[str]()
    attends = sorted(
        (op for op in stage.ops if isinstance(op, Attend) and op.cache is not None and op.k and op.v),
        key=lambda op: op.cache or 0,
    )
    for op, entered in zip(attends, stage.layers, strict=True):
        assert op.k is not None
        assert op.v is not None
        own = [with_names(o, {entered: state}) for o in stage.ops if entered not in writes(o)]
        ops += [o for o in live(own, (op.k, op.v)) if o not in ops]
        outputs += [op.k, op.v]
    return Stage(stage.inputs, tuple(ops), tuple(outputs))


def reading(stage: Stage) -> Stage:
    """A block whose depths share K and V, at the depths that only read them: without the ops that make any."""
    ops = [
        structs.replace(op, k=None, v=None) if isinstance(op, Attend) and op.slot == "first" else op
        for op in stage.ops
    ]
    return structs.replace(stage, ops=tuple(live(ops, stage.outputs)))


def at_depth(program: Program, depth: int) -> Stage:
    """The block of ``depth`` as it is run there."""
    block = program.stage("block", depth)
    return reading(block) if depth and program.shares_kv else block


def live(ops: Iterable[Op], outputs: Iterable[str]) -> list[Op]:
    """Those of ``ops`` that ``outputs`` need, in order; of a matrix only the parts that are needed."""
    needed, kept = set(outputs), list[Op]()
    for op in reversed(list(ops)):
        wanted = [i for i, y in enumerate(writes(op)) if y in needed]
        if wanted:
            if isinstance(op, Linear):
                y = op.y[wanted[0] : wanted[-1] + 1]
                op = structs.replace(op, y=y, first=op.first + wanted[0])
            needed.update(reads(op))
            kept.append(op)
    return kept[::-1]


def whole(program: Program) -> Stage:
    """The loop, and all that is around it, written out as one stage: ids [N] → logits.

    Weights stay as they are; ops say whose rows and deltas apply (``at``). Each application of a layer has a cache of
    its own, unless depths share them.
    """
    stage, head = _written_out(program), program.head
    names = dict(zip(head.inputs, stage.outputs, strict=True))
    ops = tuple(with_names(op, names) for op in head.ops)
    return Stage(stage.inputs, stage.ops + ops, tuple(names.get(o, o) for o in head.outputs), stage.layers)


def unrolled(program: Program) -> tuple[Program, dict[str, Source]]:
    """The same model with every applied layer stored, all of them in its prologue; and where its tensors come from.

    Deltas are to be merged into the matrices that they change.
    """
    stage, sources = _written_out(program), dict[str, Source]()
    weights = {name: program.weights[name] for op in program.head.ops for _, name in weight_fields(op)}
    ops, number = list[Op](), -1
    for op in stage.ops:
        if number + 1 < len(stage.layers) and stage.layers[number + 1] in reads(op):
            number += 1
        for field, name in weight_fields(op):
            if number < 0 or name in weights:
                weights[name] = program.weights[name]
                continue
            new = f"layers.{number}.{name.rpartition('.')[2]}"
            weights[new] = _alone(program.weights[name])
            for ours, theirs in zip(
                _canonical(new, weights[new]), _canonical(name, weights[new]), strict=True
            ):
                sources[ours] = Source(name, theirs, getattr(op, "at", None))
            op = structs.replace(op, **{field: new})
        ops.append(structs.replace(op, at=None) if getattr(op, "at", None) is not None else op)
    carries = tuple(carry.name for carry in program.loop.carries)
    still = Stage(carries, (), carries)
    twin = structs.replace(
        program,
        prologue=structs.replace(stage, ops=tuple(ops)),
        loop=Loop(program.loop.carries, (still,), (0,)),
        epilogue=still,
        weights=weights,
        exit_gate=False,
        routing=None,
    )
    for name in weights.keys() - {source.weight for source in sources.values()}:
        sources |= {n: Source(name, n, None) for n in _canonical(name, weights[name]) if n not in sources}
    return twin, sources


def _written_out(program: Program) -> Stage:
    """ids [N] → the carries that the head takes."""
    parts: list[tuple[Stage, int | None]] = [(program.prologue, None)]
    parts += [(at_depth(program, depth), depth) for depth in range(program.depths)]
    parts.append((program.epilogue, None))
    ops, layers = list[Op](), list[str]()
    values, caches, kept, first = program.prologue.inputs, 0, 0, dict[int, int]()
    for number, (stage, depth) in enumerate(parts):
        names = dict(zip(stage.inputs, values, strict=True))
        names |= {value: f"{number}/{value}" for op in stage.ops for value in writes(op)}
        for op in stage.ops:
            op = _at(with_names(op, names), depth, program.weights)
            if isinstance(op, Attend | AttendTwice) and op.cache is not None:
                joins = depth is not None and isinstance(op, Attend) and op.slot == "first"
                cache = first.setdefault(op.cache, caches) if joins else caches
                caches += cache == caches
                op = structs.replace(op, cache=cache)
            elif isinstance(op, Shift):
                op, kept = structs.replace(op, cache=kept), kept + 1
            ops.append(op)
        layers += [names[value] for value in stage.layers]
        values = tuple(names[value] for value in stage.outputs)
    return Stage(program.prologue.inputs, tuple(ops), values, tuple(layers))


def _at(op: Op, depth: int | None, weights: Mapping[str, Weight]) -> Op:
    """``op`` of a block at ``depth``: a weight that differs between depths is that depth's."""
    if depth is None or getattr(op, "at", depth) is not None:
        return op
    differs = any(_alone(weights[name]) != weights[name] for _, name in weight_fields(op))
    return structs.replace(op, at=depth) if differs else op


def _alone(weight: Weight) -> Weight:
    """What ``weight`` is at one depth."""
    if isinstance(weight, Vector):
        return Vector(weight.size)
    return Matrix(weight.parts, weight.columns, weight.bias)


def _canonical(name: str, weight: Weight) -> list[str]:
    """The canonical names of the tensors of a weight that is the same at every depth."""
    if isinstance(weight, Vector):
        return [f"{name}.weight"]
    sides = ("weight", "bias") if weight.bias else ("weight",)
    return [f"{sibling(name, part)}.{side}" for part in weight.parts for side in sides]
