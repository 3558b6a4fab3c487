"""The part of a manifest that describes one target: a tagged struct in the folder of its engine.

The tag is the target's name. Readers of a manifest use its methods, and know none of its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec import Struct

from ..model.program import Program

ByteCount = Callable[[float], str]
"""Writes a number of bytes for people."""


@dataclass(frozen=True)
class DetailsTable:
    """Rows for people. ``columns``: their headings, "#" before one of numbers; without, a row is (name, value)."""

    rows: list[tuple[str, ...]]
    columns: tuple[str, ...] = ()


class Details(Struct, frozen=True, forbid_unknown_fields=True, tag_field="target"):
    """The base of the structs that describe a target."""

    def problems(self, place: str) -> Iterator[str]:
        """Yield what is wrong with its numbers; ``place`` is its path in the manifest, for the message."""
        raise NotImplementedError

    def describe(self, program: Program, byte_count: ByteCount) -> Iterator[DetailsTable]:
        """Yield the tables that `edgeloop show` prints of it."""
        raise NotImplementedError

    def position_bytes(self, program: Program) -> int:
        """Return the bytes that the target stores for each position of the context, caches aside."""
        return 0

    @property
    def target(self) -> str:
        """The name of the target."""
        return str(self.__struct_config__.tag)
