"""FlatBuffers by their schema: which bytes tables, vectors and texts take (https://flatbuffers.dev/internals).

A schema names the fields of each table in order: a number of bytes for a scalar, ``text``, another table, ``[…]`` for a
vector of any of these, ``A|B|C`` for a union, which is a byte that says which of them follows, and the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .ledger import Data, Ledger

Schema = Mapping[str, tuple[str, ...]]
LONGEST = 1 << 16
"""Bytes of a text; the longest in use describes the nesting of a method's arguments."""


@dataclass
class FlatbufferTable:
    """A table that was read: values of scalars, texts, tables, and lists of these, by the number of the field."""

    kind: str
    fields: dict[int, Any] = field(default_factory=dict)

    def all(self, number: int) -> list[Any]:
        """Return the entries of a vector."""
        return list(self.fields.get(number, ()))


class Reader:
    """Reads one FlatBuffer of a file. ValueError when an offset points outside of it."""

    def __init__(self, ledger: Ledger, schema: Schema, start: int, end: int, kind: str) -> None:
        self._ledger, self._schema, self._start, self._end, self._kind = ledger, schema, start, end, kind
        self._data: Data = ledger.data
        self._tables: dict[int, FlatbufferTable] = {}

    def root(self, kind: str) -> FlatbufferTable:
        """Return the root table; its offset and the four letters of the format come first."""
        self._take(self._start, 8)
        found = self._table(kind, self._start + self._number(self._start, 4))
        for start, end in self._ledger.gaps(self._start, self._end):
            if end - start < 32 and not self._data[start:end].strip(b"\0"):
                self._ledger.take(start, end, "padding")
        return found

    def _take(self, at: int, size: int) -> int:
        if not self._start <= at <= at + size <= self._end:
            raise ValueError(f"a FlatBuffer that leads out of itself to byte {at}")
        self._ledger.take(at, at + size, self._kind)
        return at

    def _number(self, at: int, size: int) -> int:
        if not self._start <= at <= self._end - size:
            raise ValueError(f"a FlatBuffer that leads out of itself to byte {at}")
        return int.from_bytes(self._data[at : at + size], "little")

    def _table(self, kind: str, at: int) -> FlatbufferTable:
        if at in self._tables:
            return self._tables[at]
        made = self._tables[at] = FlatbufferTable(kind)
        back = self._number(self._take(at, 4), 4)
        places = at - (back - (1 << 32) if back >> 31 else back)
        count = self._number(places, 2)
        self._take(places, count)
        offsets = [self._number(places + i, 2) for i in range(4, count - 1, 2)]
        slots = list(_slots(self._schema[kind]))
        for number, offset in enumerate(offsets):
            if offset and number < len(slots):
                self._field(made, number, slots, at + offset)
            elif offset:
                self._ledger.refuse(
                    at + offset, at + offset + 1, f"field {number} of {kind}, which is not known"
                )
        return made

    def _field(self, made: FlatbufferTable, number: int, slots: list[str], at: int) -> None:
        kind = slots[number]
        if "|" in kind:  # the byte before says which
            which = made.fields.get(number - 1, 0)
            names = kind.split("|")
            if 1 <= which <= len(names):
                made.fields[number] = self._value(names[which - 1], at)
            return
        made.fields[number] = self._value(kind, at)

    def _value(self, kind: str, at: int) -> Any:
        if kind.isdigit():
            return self._number(self._take(at, int(kind)), int(kind))
        target = at + self._number(self._take(at, 4), 4)
        if kind == "text":
            return self._text(target)
        if kind.startswith("["):
            return self._vector(kind[1:-1], target)
        return self._table(kind, target)

    def _text(self, at: int) -> str:
        size = self._number(at, 4)
        self._take(at, 4 + size + 1)
        if size > LONGEST:
            self._ledger.refuse(at, at + 4 + size, f"a text of {size} bytes")
        return bytes(self._data[at + 4 : at + 4 + size]).decode(errors="replace")

    def _vector(self, kind: str, at: int) -> list[Any]:
        count = self._number(at, 4)
        size = int(kind) if kind.isdigit() else 4
        self._take(at, 4 + count * size)
        return [self._value(kind, at + 4 + i * size) for i in range(count)]


def _slots(fields: tuple[str, ...]) -> Iterator[str]:
    for kind in fields:
        if "|" in kind:
            yield "1"
        yield kind
