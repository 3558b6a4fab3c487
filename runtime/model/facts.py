"""What a program amounts to in numbers that people compare: layers, repeats, deltas, parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .ops import Act, Attend, Linear, Op, kind, reads, weight_fields
from .program import Program, Stage
from .weights import Delta, Matrix, tensors

_LONGEST = 256
"""The longest run of layers that is searched for repeats: the search takes time by its square."""

_TELLING = ("kind", "function", "mask")
"""The fields that tell ops of one kind apart in a summary."""


@dataclass(frozen=True)
class LayerRun:
    """``layers`` stored layers, applied ``repeats`` times in a row."""

    layers: int
    repeats: int


def layer_weights(stage: Stage) -> list[frozenset[str]]:
    """Return the names of the weights of each layer that ``stage`` applies; ops after the last layer are in it."""
    found: list[set[str]] = []
    for op, number in numbered(stage):
        while len(found) <= number:
            found.append(set())
        if number >= 0:
            found[number].update(name for _, name in weight_fields(op))
    return [frozenset(names) for names in found]


def numbered(stage: Stage) -> list[tuple[Op, int]]:
    """Return each op of ``stage`` with the number of its layer; −1 is before the first."""
    number, found = -1, list[tuple[Op, int]]()
    for op in stage.ops:
        if number + 1 < len(stage.layers) and stage.layers[number + 1] in reads(op):
            number += 1
        found.append((op, number))
    return found


def runs(program: Program) -> list[LayerRun]:
    """Return the layers of a model in order, as they are stored and repeated."""
    found = _runs(_layers(program, program.prologue))
    if len(program.loop.blocks) == 1:
        block = _runs(_layers(program, program.loop.blocks[0]))
        once = len(block) == 1 and block[0].repeats == 1
        found += [LayerRun(block[0].layers, program.depths)] if once else block * program.depths
    else:
        every = [name for d in range(program.depths) for name in _layers(program, program.stage("block", d))]
        found += _runs(every)
    return found + _runs(_layers(program, program.epilogue))


def _layers(program: Program, stage: Stage) -> list[frozenset[str]]:
    """Return what tells the layers of ``stage`` apart: their matrices, for vectors may be of a depth (prompts)."""
    matrices = {name for name, weight in program.weights.items() if isinstance(weight, Matrix)}
    return [names & matrices or names for names in layer_weights(stage)]


def _runs(layers: list[frozenset[str]]) -> list[LayerRun]:
    found, i = list[LayerRun](), 0
    while i < len(layers):
        for length in range(1, min(_LONGEST, (len(layers) - i) // 2) + 1):
            unit, times = layers[i : i + length], 1
            while layers[i + times * length : i + (times + 1) * length] == unit:
                times += 1
            if times > 1:
                found.append(LayerRun(length, times))
                i += length * times
                break
        else:
            single = LayerRun(1, 1)
            if found and found[-1].repeats == 1:
                single = LayerRun(found.pop().layers + 1, 1)
            found.append(single)
            i += 1
    return found


def stored_layers(program: Program) -> int:
    """Return the number of layers with matrices of their own."""
    return len({names for stage in program.stages for names in _layers(program, stage)})


def attentions(program: Program) -> Iterator[Attend]:
    """Yield every attention op, stage by stage."""
    return (op for stage in program.stages for op in stage.ops if isinstance(op, Attend))


def attention(program: Program) -> Attend | None:
    """Return the first attention, whose sizes most models have everywhere; None where there is none."""
    return next(attentions(program), None)


def op_kinds(program: Program) -> tuple[str, ...]:
    """Return the kinds of ops of a program, sorted, each with the fields that tell it from others of its name."""
    return tuple(sorted({_described(op) for stage in program.stages for op in stage.ops}))


def _described(op: Op) -> str:
    said = [value for field in _TELLING if isinstance(value := getattr(op, field, None), str)]
    if isinstance(op, Attend) and op.window is not None:
        said.append("window")
    return kind(op) + (f" ({', '.join(said)})" if said else "")


def mlp_size(program: Program) -> int:
    """Return the width of the widest matrix output that an activation reads; 0 where there is none."""
    widest = 0
    for stage in program.stages:
        active = {op.x for op in stage.ops if isinstance(op, Act)}
        for op in stage.ops:
            if isinstance(op, Linear):
                sizes = tuple(program.matrix(op.weight).parts.values())[op.first :]
                widest = max([widest, *(n for y, n in zip(op.y, sizes, strict=False) if y in active)])
    return widest


def deltas(program: Program) -> dict[str, Delta]:
    """Return the deltas of the parts of all matrices, by the part's canonical name."""
    matrices = ((name, w) for name, w in program.weights.items() if isinstance(w, Matrix))
    return {
        f"{name.rpartition('.')[0]}.{part}": delta for name, w in matrices for part, delta in w.deltas.items()
    }


def delta_parameters(program: Program) -> int:
    """Return the number of parameters in the deltas of all depths."""
    return sum(t.numbers for _, t in tensors(program.weights) if t.kind == "delta")


def count_parameters(program: Program, heads: int = 0) -> tuple[int, int]:
    """Return (parameters of the model, parameters of the same model with every applied layer stored).

    ``heads`` is the number of parameters of the heads that the host computes, which no target stores.
    """
    blocks = [program.stage("block", depth) for depth in range(program.depths)]
    applied, entire = Counter[str](), set[str]()
    for stage in [program.prologue, *blocks, program.epilogue]:
        applied.update(
            name for _, name in {(n, w) for op, n in numbered(stage) for _, w in weight_fields(op)}
        )
        entire.update(w for op in stage.ops if not hasattr(op, "at") for _, w in weight_fields(op))
    unique = unrolled = heads
    for name, weight in program.weights.items():
        several = weight.copies > 1 if isinstance(weight, Matrix) else weight.per_depth
        for _, tensor in tensors({name: weight}):
            once = (several and name not in entire) or tensor.kind == "delta"
            unique += tensor.numbers
            unrolled += tensor.numbers * (1 if once else applied[name] or 1)
    return unique, unrolled
