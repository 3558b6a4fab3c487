"""Checks protobuf files against a closed table of messages: known fields only, once each, texts of limited length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..protobuf import FIXED32, FIXED64, TEXT, VARINT, Field, fields
from .ledger import Ledger

Messages = Mapping[str, Mapping[int, tuple[str, str]]]
LONGEST = 256
"""Bytes of a name."""
DEEPEST = 100
_WIRES = {"number": (VARINT, FIXED64, FIXED32, TEXT), "text": (TEXT,), "bytes": (TEXT,)}
"""The wire type of each kind of scalar; numbers that follow each other may be packed into a TEXT."""


@dataclass
class Message:
    """A message that was read: its fields by name, inner messages parsed."""

    kind: str
    start: int
    end: int
    inner: dict[str, list[Message]] = field(default_factory=dict)
    values: dict[str, list[Field]] = field(default_factory=dict)

    def text(self, data: bytes, name: str) -> str:
        """Return the last value of a text field; empty where there is none."""
        found = self.values.get(name)
        return data[found[-1].value : found[-1].end].decode(errors="replace") if found else ""

    def all(self, name: str) -> list[Message]:
        """Return the messages in a field."""
        return self.inner.get(name, [])


Judge = Callable[[str, str, Field], str]
"""(message, field name, field) → why it should not be there; empty where it may be."""


def read_message(
    ledger: Ledger,
    messages: Messages,
    root: str,
    repeats: Callable[[str, str], bool],
    judge: Judge,
) -> Message:
    """Return the file of ``ledger`` as a ``root`` message; ValueError when it is no protobuf.

    Refused are unknown fields, those that ``judge`` objects to, and all but the first where ``repeats`` (message,
    field) says that there is one.
    """
    data = bytes(ledger.data)

    def read(kind: str, start: int, end: int, depth: int) -> Message:
        if depth > DEEPEST:
            raise ValueError(f"messages nested more than {DEEPEST} deep")
        made = Message(kind, start, end)
        for found in fields(data, start, end):
            name, holds = messages[kind].get(found.number, ("", ""))
            if not name:
                ledger.refuse(found.start, found.end, f"field {found.number} of {kind}, which is not known")
                continue
            wires = _WIRES.get(holds, (TEXT,))
            if found.wire not in wires or (
                holds == "number" and found.wire == TEXT and not repeats(kind, name)
            ):
                ledger.refuse(found.start, found.end, f"{name} of {kind}, written as something else")
                continue
            if why := judge(kind, name, found):
                ledger.refuse(found.start, found.end, why)
                continue
            if (name in made.values or name in made.inner) and not repeats(kind, name):
                ledger.refuse(found.start, found.end, f"a second {name} of {kind}")
                continue
            if holds in messages:
                ledger.take(found.start, found.value, "graph")
                made.inner.setdefault(name, []).append(read(holds, found.value, found.end, depth + 1))
            else:
                if holds == "text" and found.end - found.value > LONGEST:
                    ledger.refuse(found.start, found.end, f"{name} of {kind}, longer than {LONGEST} bytes")
                    continue
                ledger.take(found.start, found.end, "graph")
                made.values.setdefault(name, []).append(found)
        return made

    return read(root, 0, len(data), 0)
