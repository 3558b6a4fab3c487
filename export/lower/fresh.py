"""Where depths share K/V, only calls of depth 0 make them: those parts of a block are computed for fresh rows
alone.

Such a block has an input ``fresh``: for how many of the S tokens, all or none, K/V are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from msgspec import structs

from ...runtime.model.ops import Attend, Linear, Op, reads, with_names, writes


@dataclass(frozen=True)
class FreshRows:
    """x [B, S, D] → y [B, S or 0, D]: the rows for which K/V are made."""

    x: str
    y: str


def with_fresh(ops: Sequence[Op], outputs: Iterable[str]) -> Iterator[Op | FreshRows]:
    """Yield ``ops`` of a block whose depths share K/V; ops that only make K/V have fresh rows."""
    alone = _keys_values(ops, set(outputs))
    sliced: dict[str, str] = {}
    for op in (part for whole in ops for part in _cut(whole, alone)):
        if alone.issuperset(writes(op)):
            for name in reads(op):
                if name not in alone and name not in sliced:
                    sliced[name] = f"{name} (fresh)"
                    yield FreshRows(name, sliced[name])
            op = with_names(op, {name: sliced[name] for name in reads(op) if name in sliced})
        yield op


def _keys_values(ops: Sequence[Op], outputs: set[str]) -> set[str]:
    """Return the names of the values that are used for K/V of shared slots, and for nothing else."""
    alone: set[str] = set()
    for op in reversed(ops):
        for name in writes(op):
            readers = [other for other in ops if name in reads(other)]
            if readers and name not in outputs and all(_only_keys(name, r, alone) for r in readers):
                alone.add(name)
    return alone


def _only_keys(name: str, reader: Op, alone: set[str]) -> bool:
    if isinstance(reader, Attend) and reader.slot == "first":
        return name != reader.q
    return alone.issuperset(writes(reader))


def _cut(op: Op, alone: set[str]) -> Iterator[Op]:
    """Yield a matrix that gives q, k and v as two matrices."""
    if not isinstance(op, Linear):
        yield op
        return
    first = op.first
    for _, run in groupby(op.y, alone.__contains__):
        y = tuple(run)
        yield structs.replace(op, y=y, first=first)
        first += len(y)
