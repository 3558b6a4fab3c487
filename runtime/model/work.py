"""What a stage costs whoever computes it: bytes of weights, multiplications and K/V, counted from its ops.

Nothing here knows a processor. Numbers are for one call of N rows, which reads each matrix once; a multiplication and
the addition behind it count as one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from .ops import Attend, AttendLearned, AttendTwice, Experts, Linear, writes
from .program import Program, Stage
from .sizes import IDS, head_sizes, sizes
from .weights import Matrix

Stored = Callable[[str], tuple[int, int]]
"""(bits, group size) of a matrix by its name; group size 0: a scale for each row, or floats without scales."""
DELTA_BYTES = 2
"""Of a number of A or B: recipes store them as float16."""


@dataclass(frozen=True)
class Product:
    """A matrix that meets every row: ``bytes`` are read once a call, ``products`` are made for each row.

    ``bits``: of a stored number; ``scales``: of its codes, which each row meets too. ``copies``: how many times the
    bytes there are for many rows, where each row picks its own (experts).
    """

    bytes: float
    products: int
    bits: int
    scales: int = 0
    copies: float = 1.0

    def read(self, rows: int) -> float:
        """Bytes that a call of ``rows`` rows reads."""
        return self.bytes * min(float(rows), self.copies)


@dataclass(frozen=True)
class Attention:
    """An attention: for each key that a row sees it reads ``kv`` numbers, and makes ``products``.

    ``window``: the most keys that it sees; ``learned``: keys that are weights, beside which there are no others.
    """

    kv: int
    products: int
    window: int | None = None
    learned: int | None = None

    def keys(self, behind: float) -> float:
        """Keys that a row sees with ``behind`` tokens before it and itself."""
        if self.learned is not None:
            return self.learned
        return min(behind, self.window) if self.window is not None else behind


@dataclass(frozen=True)
class Work:
    """One call of a stage at one depth. ``numbers``: that its other ops write for each row; ``steps``: its ops."""

    products: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    numbers: int
    steps: int

    def weight_bytes(self, rows: int = 1) -> float:
        """Bytes of weights that a call of ``rows`` rows reads."""
        return sum(product.read(rows) for product in self.products)

    @property
    def row_products(self) -> int:
        """Products of a row with weights."""
        return sum(product.products for product in self.products)

    def kv_numbers(self, behind: float) -> float:
        """Numbers of K/V that a row reads with ``behind`` tokens before it."""
        return sum(each.kv * each.keys(behind) for each in self.attentions)


def work(program: Program, stage: Stage, given: Sequence[int], stored: Stored) -> Work:
    """Count the work of ``stage``, whose inputs have the sizes ``given``."""
    known = sizes(stage, given, program.weights)
    products, attentions, numbers = list[Product](), list[Attention](), 0
    for op in stage.ops:
        if isinstance(op, Linear):
            products += _linear(program, op, stored)
        elif isinstance(op, Experts):
            products += _experts(program, op, stored)
        elif isinstance(op, Attend | AttendTwice | AttendLearned):
            attentions += _attention(program, op)
        else:
            numbers += sum(known[value] for value in writes(op))
    return Work(tuple(products), tuple(attentions), numbers, len(stage.ops))


def stage_work(program: Program, name: str, stored: Stored, depth: int = 0) -> Work:
    """Count the work of ``prologue``, ``block`` (of ``depth``), ``epilogue`` or ``head``."""
    from .transform import at_depth

    carries = [carry.width for carry in program.loop.carries]
    if name == "block":
        return work(program, at_depth(program, depth), carries, stored)
    if name == "head":
        return work(program, program.head, head_sizes(program), stored)
    stage = program.stage(name)
    return work(program, stage, [IDS] * len(stage.inputs) if name == "prologue" else carries, stored)


class TokenWork:
    """The work of a token's stages: ``prologue``, ``blocks`` (each depth's), ``epilogue`` and ``head``."""

    def __init__(self, program: Program, stored: Stored) -> None:
        self.program = program
        self.prologue, self.epilogue, self.head = (
            stage_work(program, name, stored) for name in ("prologue", "epilogue", "head")
        )
        self.blocks = [stage_work(program, "block", stored, depth) for depth in range(program.depths)]

    @property
    def block_bytes(self) -> float:
        """Bytes of weights that one turn of the loop's blocks reads."""
        last = {block: depth for depth, block in enumerate(self.program.loop.schedule)}
        return sum(self.blocks[depth].weight_bytes() for depth in last.values())

    @property
    def token_bytes(self) -> float:
        """Bytes of weights that a token at full depth reads, each time that it does."""
        return sum(work.weight_bytes() for work in (self.prologue, *self.blocks, self.epilogue, self.head))

    @property
    def distinct_bytes(self) -> float:
        """Bytes of weights that a token at full depth reads, each once, however often it does."""
        return self.token_bytes - sum(work.weight_bytes() for work in self.blocks) + self.block_bytes

    @property
    def row_products(self) -> int:
        """Products of a token with weights at full depth, its logits included."""
        return sum(work.row_products for work in (self.prologue, *self.blocks, self.epilogue, self.head))

    def kv_numbers(self, behind: float) -> float:
        """Numbers of K/V that a token at full depth reads."""
        return sum(work.kv_numbers(behind) for work in (self.prologue, *self.blocks, self.epilogue))


def scales_of(rows: int, columns: int, bits: int, group_size: int) -> int:
    """Return the number of scales of a matrix [rows, columns]; 0 for floats."""
    return 0 if bits >= 16 else rows * (ceil(columns / group_size) if group_size else 1)


def _linear(program: Program, op: Linear, stored: Stored) -> list[Product]:
    matrix = program.matrix(op.weight)
    parts = list(matrix.parts.items())[op.first : op.first + len(op.y)]
    rows = sum(count for _, count in parts)
    bits, group = stored(op.weight)
    scales, numbers = scales_of(rows, matrix.columns, bits, group), rows * matrix.columns
    size = numbers * bits / 8 + 2 * scales + 4 * rows * matrix.bias
    found = [Product(size, numbers, bits, scales)]
    deltas = [(matrix.deltas[part].rank, count) for part, count in parts if part in matrix.deltas]
    if deltas:
        numbers = sum(rank * (matrix.columns + count) for rank, count in deltas)
        found.append(Product(numbers * DELTA_BYTES, numbers, 8 * DELTA_BYTES))
    return found


def _experts(program: Program, op: Experts, stored: Stored) -> list[Product]:
    found = []
    for name in (op.up, op.down):
        matrix: Matrix = program.matrix(name)
        bits, group = stored(name)
        scales = op.top * scales_of(matrix.rows, matrix.columns, bits, group)
        numbers = op.top * matrix.rows * matrix.columns
        found.append(Product(numbers * bits / 8 + 2 * scales, numbers, bits, scales, matrix.copies / op.top))
    return found


def _attention(program: Program, op: Attend | AttendTwice | AttendLearned) -> list[Attention]:
    kv, products = 2 * op.kv_heads * op.head_dim, 2 * op.heads * op.head_dim
    if isinstance(op, AttendLearned):
        rows = getattr(program.weights[op.keys], "rows", None)
        return [Attention(kv, products, learned=rows or 0)]
    if isinstance(op, AttendTwice):
        return [Attention(kv, products), Attention(kv, products, op.window)]
    return [Attention(kv, products, op.window)]
