"""Protocol buffers as bytes: the fields of a message and where they are, without a library or a schema.

Files of strangers are examined before an engine reads them, on boards that have no protobuf (the format:
https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, TEXT, FIXED32 = 0, 1, 2, 5
"""Wire types. ``TEXT`` has a length: texts, bytes, packed numbers, messages."""
_SIZES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field: its bytes are ``start`` … ``end`` of the data, those of its value begin at ``value``."""

    number: int
    wire: int
    start: int
    value: int
    end: int


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in ``data`` from ``start`` to ``end``; ValueError where it is none."""
    at, end = start, len(data) if end is None else end
    while at < end:
        tag, value = varint(data, at, end)
        wire, stop = tag & 7, value
        if wire == VARINT:
            _, stop = varint(data, value, end)
        elif wire == TEXT:
            length, value = varint(data, value, end)
            stop = value + length
        elif wire in _SIZES:
            stop = value + _SIZES[wire]
        else:
            raise ValueError(f"a field of wire type {wire} at byte {at}")
        if stop > end:
            raise ValueError(f"a field at byte {at} ends behind its message")
        yield Field(tag >> 3, wire, at, value, stop)
        at = stop


def varint(data: bytes, at: int, end: int | None = None) -> tuple[int, int]:
    """Return (the number at ``at``, the index after it); ValueError when it is too long or cut off."""
    end = len(data) if end is None else end
    if at < end and data[at] < 128:  # most are
        return data[at], at + 1
    value = 0
    for i, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError(f"no number at byte {at}")


def number(value: int) -> bytes:
    """Return ``value`` as a varint."""
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(tag: int, payload: bytes) -> bytes:
    """Return a field of the wire type ``TEXT``."""
    return number(tag << 3 | TEXT) + number(len(payload)) + payload
