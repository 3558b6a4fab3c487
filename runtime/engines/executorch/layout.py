"""layout.json of a .pte: which methods with how many rows it has, and where the embedding is in which file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ...errors import BundleError
from ...model.limits import within
from ...model.program import STAGES, Program
from .kinds import kinds, lookups, role, whole_lanes, widths

BASE, DELTAS = "base.ptd", "deltas.ptd"
CHUNK = 64
ENDS = 4096
"""Bytes at each end of a table that are checked when it is opened: all of a large one would be read from the disk."""
MOST_TOKENS = 4096
"""Of a chunk: each token has a row of a mask over the whole context."""
MOST_PREFIX = 512
"""Of a chunk that a prompt whose tokens see each other has to fit: it costs as much for a short one."""
MOST_ROWS = 4
"""Of the rows with depths of their own in one call: each has its attention written out."""


class Shapes(Struct, frozen=True, forbid_unknown_fields=True):
    """The rows of the largest mN method (``rows``) and of the prefill methods (``chunk``)."""

    rows: int
    chunk: int

    @staticmethod
    def of(program: Program) -> Shapes:
        """Return the shapes for ``program``: a row for each depth, within reason; a chunk of all that one call may
        need."""
        if whole_lanes(program):
            return Shapes(1, min(program.context_length, MOST_TOKENS))
        if program.prefix_lm:
            return Shapes(min(program.depths, MOST_ROWS), min(program.context_length, MOST_PREFIX))
        return Shapes(min(program.depths, MOST_ROWS), CHUNK)

    def kinds(self, program: Program) -> list[str]:
        """Return the kinds of methods that a model has, in the order in which a pass runs them."""
        return kinds(program)

    def counts(self, kind: str) -> list[int]:
        """Return the numbers of rows for which a kind has a method."""
        if role(kind) in ("block", "read"):
            return list(range(1, self.rows + 1))
        return sorted({1, self.rows}) if kind == "head" else [1]

    def methods(self, kind: str) -> Iterator[tuple[str, int, bool]]:
        """Yield (name, rows, whether all rows are of one lane) of every method of a kind."""
        for m in self.counts(kind):
            yield f"{kind}_m{m}", m, False
        yield f"{kind}_prefill", self.chunk, True


def checksum(parts: Iterable[bytes | memoryview]) -> int:
    """Return the CRC-32 of the first and the last ``ENDS`` bytes of each part, one after another."""
    found = 0
    for part in parts:
        data = memoryview(part).cast("B")
        found = zlib.crc32(data[-ENDS:], zlib.crc32(data[:ENDS], found))
    return found


class EmbeddingTable(Struct, frozen=True, forbid_unknown_fields=True):
    """An embedding that the host looks up itself: values [V, D], or codes and scales as quant/pack.py has them.

    A tied one is the head's matrix inside the program: it is stored once. Codes of 8 bits are signed there. Offsets
    are bytes into ``file``. ``check`` is the ``checksum`` of values and scales: a host that finds another one has a
    layout and a file of two exports.
    """

    file: str
    kind: Literal["float32", "int4", "int8"]
    values: int
    check: int
    scales: int = 0
    scale_type: Literal["bfloat16", "float32"] = "float32"
    groups: int = 0


class Sizes(Struct, frozen=True, forbid_unknown_fields=True):
    """What a host that does not read programs must know of the model: a small C++ loop, an app.

    ``rope_theta``: 0 where nothing is rotated. ``rope_dims``: how many of a head's first dims are; 0 for all.
    ``beyond``: what a host must do besides, in words; one that does not know all of it cannot run the model.
    """

    width: int
    vocab_size: int
    depths: int
    kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float
    window: int | None
    shared_kv: bool
    routed: bool
    rope_dims: int = 0
    rope_pairs: bool = False
    embedding_scale: float = 1.0
    beyond: tuple[str, ...] = ()

    @staticmethod
    def of(program: Program) -> Sizes:
        """Return the sizes of ``program``, whose caches have one shape."""
        shapes = [shape for name in STAGES for shape in program.caches(name)]
        heads, width = (shapes[0].kv_heads, shapes[0].head_dim) if shapes else (0, 0)
        turns = list(dict.fromkeys((op.by, op.pairs) for op in program.rotates))
        by, pairs = turns[0] if turns else (None, False)
        first = lookups(program)[0]
        beyond = {
            "rotations of several kinds": len(turns) > 1,
            "scaled rotations": any(by.scaling is not None for by, _ in turns),
            "rows of several tables": len(lookups(program)) > 1,
            "several blocks in its loop": len(program.loop.blocks) > 1,
            "K/V that depths share in a window": program.shares_kv and program.window is not None,
            "windows in some layers": program.window is None and any(s.window is not None for s in shapes),
            "attention without K/V of earlier calls": whole_lanes(program),
            "states of several widths": any(
                widths(program, kind) != (program.width,) for kind in ("prologue", "head")
            ),
        }
        return Sizes(
            program.width,
            program.vocab_size,
            program.depths,
            heads,
            width,
            program.context_length,
            by.theta if by else 0.0,
            program.window,
            program.shares_kv,
            program.routing is not None,
            by.dims if by and by.dims != width else 0,
            pairs,
            first.scale,
            tuple(what for what, there in beyond.items() if there),
        )


class Layout(Struct, frozen=True, forbid_unknown_fields=True):
    """layout.json. ``version``: of the executorch that wrote the program. ``data``: .ptd files that it needs.

    ``embedding``: the table of the program's first lookup; ``further``: those of the others.
    """

    version: str
    program: str
    sizes: Sizes
    shapes: Shapes
    embedding: EmbeddingTable
    data: tuple[str, ...] = ()
    further: tuple[EmbeddingTable, ...] = ()

    @property
    def tables(self) -> tuple[EmbeddingTable, ...]:
        """The tables of all lookups, in order."""
        return self.embedding, *self.further


def read_layout(path: Path, program: Program) -> Layout:
    """Return the layout at ``path`` of a model with ``program``; BundleError when it is damaged or not that model's."""
    try:
        layout = msgspec.json.decode(path.read_bytes(), type=Layout)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error
    if problem := next(_problems(layout, program), None):
        raise BundleError(f"{path}: {problem}; copy the bundle again or export it again")
    return layout


def _problems(layout: Layout, program: Program) -> Iterator[str]:
    if layout.sizes != Sizes.of(program):
        yield "sizes are not those of the manifest's program"
    yield from within("shapes.rows", layout.shapes.rows, 1, max(program.depths, MOST_ROWS))
    yield from within("shapes.chunk", layout.shapes.chunk, 1, MOST_TOKENS)
    found = lookups(program)
    if len(layout.tables) != len(found):
        yield f"{len(layout.tables)} tables, wanted {len(found)}"
    for number, (op, table) in enumerate(zip(found, layout.tables, strict=False)):
        name = f"further[{number - 1}]" if number else "embedding"
        yield from _table_problems(name, table, program.matrix(op.table).columns)


def _table_problems(name: str, table: EmbeddingTable, width: int) -> Iterator[str]:
    yield from within(f"{name}.values", table.values, 0, 1 << 50)
    yield from within(f"{name}.scales", table.scales, 0, 1 << 50)
    if table.kind == "float32":
        yield from within(f"{name}.groups", table.groups, 0, 0)
        return
    yield from within(f"{name}.groups", table.groups, 1, width)
    per_byte = 2 if table.kind == "int4" else 1
    if table.groups > 0 and width % (table.groups * per_byte):
        yield f"{name}.groups is {table.groups}, which do not divide rows of {width}"
