"""The width of each value of a stage, from its ops and the weights that they use; and whether these fit each other.

Numbers of ops and weights are expected to have passed the ranges of ``checks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .ops import (
    Act,
    Add,
    Attend,
    AttendLearned,
    AttendTwice,
    Concat,
    Embed,
    Experts,
    Linear,
    Mul,
    Norm,
    Op,
    Rotate,
    Scale,
    Shift,
    Slice,
    Softcap,
    writes,
)
from .program import Program, Stage
from .weights import Matrix, Vector, Weight

IDS = 0
"""The size of ids [N]: whole numbers of tokens or positions, which are no vectors."""


class OpMismatchError(ValueError):
    """An op does not fit the values that it reads or the weights that it uses; the message is a few words."""


class ValueSizes:
    """The weights of a program, and the sizes of the values of a stage that were written so far."""

    def __init__(self, weights: Mapping[str, Weight], sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self._weights = weights

    def size(self, value: str) -> int:
        """Return the size of the value [N, size]; OpMismatchError when there is no such value, or it holds ids."""
        found = self._written(value)
        if found == IDS:
            raise OpMismatchError(f"reads {value}, whole numbers, as vectors")
        return found

    def wanted(self, value: str, size: int) -> None:
        """Raise OpMismatchError unless ``value`` is [N, ``size``]."""
        if (found := self.size(value)) != size:
            raise OpMismatchError(f"{value} is [N, {found}], wanted [N, {size}]")

    def ids(self, value: str) -> None:
        """Raise OpMismatchError unless ``value`` holds ids."""
        if self._written(value) != IDS:
            raise OpMismatchError(f"{value} is [N, {self.sizes[value]}], wanted whole numbers, [N]")

    def matrix(self, name: str) -> Matrix:
        """Return the matrix ``name``; OpMismatchError when it is no matrix."""
        weight = self._weight(name)
        if not isinstance(weight, Matrix):
            raise OpMismatchError(f"weight {name} is a vector, wanted a matrix")
        return weight

    def vector(self, name: str, size: int) -> Vector:
        """Return the vector ``name``; OpMismatchError unless it has ``size`` numbers, or rows of as many."""
        weight = self._weight(name)
        if not isinstance(weight, Vector):
            raise OpMismatchError(f"weight {name} is a matrix, wanted a vector")
        if weight.size != size:
            raise OpMismatchError(f"weight {name} is [{weight.size}], wanted [{size}]")
        return weight

    def write(self, op: Op) -> None:
        """Add the values that ``op`` writes; OpMismatchError when it does not fit."""
        for value, size in zip(writes(op), written(op, self), strict=True):
            if value in self.sizes:
                raise OpMismatchError(f"writes {value}, which is there already")
            self.sizes[value] = size

    def _written(self, value: str) -> int:
        if value not in self.sizes:
            raise OpMismatchError(f"reads {value}, which nothing before it writes")
        return self.sizes[value]

    def _weight(self, name: str) -> Weight:
        if name not in self._weights:
            raise OpMismatchError(f"uses the weight {name}, which the program does not have")
        return self._weights[name]


def sizes(stage: Stage, given: Sequence[int], weights: Mapping[str, Weight]) -> dict[str, int]:
    """Return the size of every value of ``stage``, whose inputs have the sizes ``given``."""
    known = ValueSizes(weights, dict(zip(stage.inputs, given, strict=True)))
    for op in stage.ops:
        known.write(op)
    return known.sizes


def head_sizes(program: Program) -> tuple[int, ...]:
    """Return the sizes of the head's inputs, which are the epilogue's outputs."""
    known = sizes(program.epilogue, [carry.width for carry in program.loop.carries], program.weights)
    return tuple(known[value] for value in program.epilogue.outputs)


def output_size(program: Program) -> int:
    """Return the size of the head's output: logits, or its input where it has no ops."""
    return program.vocab_size if program.head.ops else sum(head_sizes(program))


def kept_sizes(program: Program, name: str) -> list[int]:
    """Return the sizes of the rows that ``Shift`` keeps in the stage ``name``; all blocks of a loop keep the same."""
    stage = program.loop.blocks[0] if name == "block" else program.stage(name)
    given = [0] * len(stage.inputs) if name == "prologue" else [c.width for c in program.loop.carries]
    known = sizes(stage, given, program.weights)
    found = {op.cache: known[op.x] for op in stage.ops if isinstance(op, Shift)}
    return [found[number] for number in sorted(found)]


def written(op: Op, known: ValueSizes) -> tuple[int, ...]:
    """Return the sizes of the values that ``op`` writes; OpMismatchError when it does not fit its inputs or weights."""
    return _RULES[type(op)](op, known)


def _embed(op: Embed, known: ValueSizes) -> tuple[int, ...]:
    known.ids(op.ids)
    table = known.matrix(op.table)
    if table.deltas or table.copies > 1 or len(table.parts) > 1:
        raise OpMismatchError(
            f"weight {op.table} is no plain matrix of one part, wanted one: its rows are looked up"
        )
    return (table.columns,)


def _norm(op: Norm, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.x)
    for name in (op.weight, op.bias):
        if name is not None:
            known.vector(name, _part(op.x, size, op.groups))
    _part(op.x, size, op.groups)
    return (size,)


def _linear(op: Linear, known: ValueSizes) -> tuple[int, ...]:
    matrix = known.matrix(op.weight)
    known.wanted(op.x, matrix.columns)
    parts = list(matrix.parts.values())[op.first : op.first + len(op.y)]
    if len(parts) < max(len(op.y), 1):
        raise OpMismatchError(
            f"takes {len(op.y)} parts of {op.weight} from part {op.first} on, it has {len(matrix.parts)}"
        )
    return tuple(parts)


def _rotate(op: Rotate, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.x)
    head = _part(op.x, size, op.heads)
    if head % 2 or op.by.dims % 2 or op.by.dims > head:
        raise OpMismatchError(
            f"rotates {op.by.dims} dims of heads of {head}, wanted even numbers, of the head's at most"
        )
    return (size,)


def _attend(op: Attend, known: ValueSizes) -> tuple[int, ...]:
    if op.k is None or op.v is None:
        return _attended(op, known)
    return _attended(op, known, op.k, op.v)


def _attend_twice(op: AttendTwice, known: ValueSizes) -> tuple[int, ...]:
    known.wanted(op.gate, op.heads)
    return _attended(op, known, op.k, op.v)


def _attended(op: Attend | AttendTwice | AttendLearned, known: ValueSizes, *kv: str) -> tuple[int, ...]:
    if op.heads % op.kv_heads:
        raise OpMismatchError(f"heads are {op.heads}, no multiple of kv_heads, {op.kv_heads}")
    known.wanted(op.q, op.heads * op.head_dim)
    for value in kv:
        known.wanted(value, op.kv_heads * op.head_dim)
    return (op.heads * op.head_dim,)


def _attend_learned(op: AttendLearned, known: ValueSizes) -> tuple[int, ...]:
    keys, values = (known.vector(name, op.kv_heads * op.head_dim) for name in (op.keys, op.values))
    if keys.rows is None or keys.rows != values.rows:
        raise OpMismatchError(
            f"{op.keys} has {keys.rows} rows and {op.values} {values.rows}, wanted one a key in both"
        )
    return _attended(op, known)


def _same(op: Act | Softcap | Shift, known: ValueSizes) -> tuple[int, ...]:
    return (known.size(op.x),)


def _add(op: Add, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.a)
    known.wanted(op.b, size)
    return (size,)


def _mul(op: Mul, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.a)
    _part(op.a, size, known.size(op.b))
    return (size,)


def _scale(op: Scale, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.x)
    if op.weight is not None:
        known.vector(op.weight, size)
    return (size,)


def _concat(op: Concat, known: ValueSizes) -> tuple[int, ...]:
    if not op.x:
        raise OpMismatchError("puts no values side by side, wanted one at least")
    return (sum(known.size(value) for value in op.x),)


def _slice(op: Slice, known: ValueSizes) -> tuple[int, ...]:
    size = known.size(op.x)
    if not 0 <= op.start < op.stop <= size:
        raise OpMismatchError(f"takes columns {op.start} to {op.stop} of {op.x}, which is [N, {size}]")
    return (op.stop - op.start,)


def _experts(op: Experts, known: ValueSizes) -> tuple[int, ...]:
    size, count = known.size(op.x), known.size(op.scores)
    up, down = known.matrix(op.up), known.matrix(op.down)
    if op.top > count:
        raise OpMismatchError(f"takes the best {op.top} of {count} experts")
    inner = _part(op.up, up.rows, 2 if op.gated else 1)
    for name, matrix, shape in ((op.up, up, (up.rows, size)), (op.down, down, (size, inner))):
        if (matrix.rows, matrix.columns) != shape:
            raise OpMismatchError(
                f"weight {name} is [{matrix.rows}, {matrix.columns}] for each expert, wanted {list(shape)}"
            )
        if matrix.copies != count or matrix.deltas or matrix.bias:
            raise OpMismatchError(
                f"weight {name} has {matrix.copies} copies, wanted {count}, one an expert, without biases and deltas"
            )
    return (size,)


def _part(what: str, size: int, parts: int) -> int:
    """Return the size of each of ``parts`` equal parts; OpMismatchError when they are none."""
    if size % parts:
        raise OpMismatchError(f"{what} has {size} numbers, wanted a multiple of {parts}")
    return size // parts


_RULES: dict[type, Callable[[Any, ValueSizes], tuple[int, ...]]] = {
    Embed: _embed,
    Norm: _norm,
    Linear: _linear,
    Rotate: _rotate,
    Attend: _attend,
    AttendTwice: _attend_twice,
    AttendLearned: _attend_learned,
    Act: _same,
    Add: _add,
    Mul: _mul,
    Scale: _scale,
    Softcap: _same,
    Concat: _concat,
    Slice: _slice,
    Shift: _same,
    Experts: _experts,
}
