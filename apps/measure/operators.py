"""One operator of one call, whichever engine ran it, and which layer it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """An operator of call number ``call``: microseconds since the call began, and what it took.

    ``layer`` of its stage, from 0; None where nothing says.
    """

    call: int
    kind: str
    begin_us: float
    us: float
    layer: int | None


def layers_of(marks: Sequence[bool], layers: int) -> list[int | None]:
    """Return the layer of each operator of a call. ``marks``: which are of the kind of which every layer has as many.

    The first mark of a layer begins it; what stands before the first one of all is the first layer's. None for
    all where the marks are not as many in each of ``layers``.
    """
    count = sum(marks)
    if not layers or not count or count % layers:
        return [None] * len(marks)
    each, seen, found = count // layers, 0, list[int | None]()
    for mark in marks:
        seen += mark
        found.append(max(seen - 1, 0) // each)
    return found
