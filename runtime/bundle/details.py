"""The part of a manifest that a target says of itself: a tagged struct in the folder of its engine.

The tag is the target's name. Who reads a manifest asks it, and knows no field of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec import Struct

from ..model.program import Program

ByteCount = Callable[[float], str]
"""How a number of bytes is written for people."""


@dataclass(frozen=True)
class DetailsTable:
    """Rows for people. ``columns``: their headings, "#" before one of numbers; without, a row is (name, value)."""

    rows: list[tuple[str, ...]]
    columns: tuple[str, ...] = ()


class Details(Struct, frozen=True, forbid_unknown_fields=True, tag_field="target"):
    """What one target says of itself."""

    def problems(self, place: str) -> Iterator[str]:
        """What is wrong with its numbers, one after the other; ``place`` is where it is in the manifest."""
        raise NotImplementedError

    def describe(self, program: Program, byte_count: ByteCount) -> Iterator[DetailsTable]:
        """What `edgeloop show` says of it."""
        raise NotImplementedError

    def position_bytes(self, program: Program) -> int:
        """Bytes that the target stores for each position of the context, caches aside."""
        return 0

    @property
    def target(self) -> str:
        """The name of the target that says this."""
        return str(self.__struct_config__.tag)
