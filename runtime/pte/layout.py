"""What a .pte of edgeloop holds: which methods with how many rows, and where the embedding lies in which file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ..backend import can_fill, shares_kv
from ..errors import BundleError
from ..model.limits import within
from ..spec import Spec, stage_layers

BASE, DELTAS = "base.ptd", "deltas.ptd"
CHUNK = 64
ENDS = 4096
"""Bytes of a table that are looked at when it is opened: all of a large one would be read from the disk."""
MOST_TOKENS = 4096
"""Of a chunk: each has a row of a mask over the whole context."""
MOST_ROWS = 4
"""Rows of depths of their own in one call at most: each has its attention written out."""


class Shapes(Struct, frozen=True, forbid_unknown_fields=True):
    """``rows``: of the largest mN method. ``chunk``: of the prefill methods."""

    rows: int
    chunk: int

    @staticmethod
    def of(spec: Spec) -> Shapes:
        """A row for each depth, within reason."""
        return Shapes(min(spec.depths, MOST_ROWS), CHUNK)

    def kinds(self, spec: Spec) -> list[str]:
        """The kinds of methods that a model has, in the order of a pass."""
        wanted = {
            "prologue": stage_layers(spec, "prologue") > 0,
            "block": True,
            "read": shares_kv(spec),
            "fill": can_fill(spec),
            "coda": stage_layers(spec, "epilogue") > 0,
            "head": True,
        }
        return [kind for kind, there in wanted.items() if there]

    def counts(self, kind: str) -> list[int]:
        """Rows of the mN methods of a kind."""
        if kind in ("block", "read"):
            return list(range(1, self.rows + 1))
        return sorted({1, self.rows}) if kind == "head" else [1]

    def methods(self, kind: str) -> Iterator[tuple[str, int, bool]]:
        """(name, rows, is it of one lane?) of every method of a kind."""
        for m in self.counts(kind):
            yield f"{kind}_m{m}", m, False
        yield f"{kind}_prefill", self.chunk, True


def checksum(parts: Iterable[bytes | memoryview]) -> int:
    """CRC-32 of the first and the last ``ENDS`` bytes of each part, one after another."""
    found = 0
    for part in parts:
        data = memoryview(part).cast("B")
        found = zlib.crc32(data[-ENDS:], zlib.crc32(data[:ENDS], found))
    return found


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The embedding, which the host looks up itself: values [V, D], or codes and scales as quant/pack.py has them.

    A tied one is the head's matrix inside the program: it is stored once. Codes of 8 bits are signed there.
    Offsets are bytes into ``file``. ``check``: ``checksum`` of values and scales: a host that finds others there has a
    layout and a file of two exports.
    """

    file: str
    kind: Literal["float32", "int4", "int8"]
    values: int
    check: int
    scales: int = 0
    scale_type: Literal["bfloat16", "float32"] = "float32"
    groups: int = 0


class Layout(Struct, frozen=True, forbid_unknown_fields=True):
    """layout.json. ``version``: of the executorch that wrote the program. ``data``: .ptd files that it needs."""

    version: str
    program: str
    shapes: Shapes
    embedding: Table
    data: tuple[str, ...] = ()


def read_layout(path: Path, spec: Spec) -> Layout:
    """The layout at ``path`` of a model with ``spec``; BundleError when it is damaged or not that model's."""
    try:
        layout = msgspec.json.decode(path.read_bytes(), type=Layout)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error
    if problem := next(_problems(layout, spec), None):
        raise BundleError(f"{path}: {problem}; copy the bundle again or export it again")
    return layout


def _problems(layout: Layout, spec: Spec) -> Iterator[str]:
    yield from within("shapes.rows", layout.shapes.rows, 1, max(spec.depths, MOST_ROWS))
    yield from within("shapes.chunk", layout.shapes.chunk, 1, MOST_TOKENS)
    table = layout.embedding
    yield from within("embedding.values", table.values, 0, 1 << 50)
    yield from within("embedding.scales", table.scales, 0, 1 << 50)
    if table.kind == "float32":
        yield from within("embedding.groups", table.groups, 0, 0)
        return
    yield from within("embedding.groups", table.groups, 1, spec.hidden_size)
    per_byte = 2 if table.kind == "int4" else 1
    if table.groups > 0 and spec.hidden_size % (table.groups * per_byte):
        yield f"embedding.groups is {table.groups}, which do not divide rows of {spec.hidden_size}"
