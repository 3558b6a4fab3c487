"""K/V of the depths that a token skipped when it left early: what stands in for them, and when it is made.

``exact``      its states wait, and run with the next token that goes deeper, in one call: the same K/V as without
               exits (FREE, arXiv 2310.05424, section 3.2)
``propagate``  K/V are projected from the state it left with (CALM, arXiv 2207.07061, section 3.1.1), for all that
               left since a token last went that deep in one call
``latest``     they are those of the last depth that it ran (Huginn's lookup ``latest-m4``, arXiv 2502.05171)
``skip``       deeper depths do not see it: a slot holds who was there, at their true positions
``shared``     nothing is missing, because depths share a slot; of several that they take in turn, those that a token
               left before have its last row (Huginn's ``latest-m4-compress-s``)

What waits is part of a sequence's context, as its K/V are: it is saved and restored with it, and taken back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..engines.backend import F32, I64
from ..engines.kv import KVCache
from ..model.program import Program
from .kv_layout import PerDepth
from .stage_call import BLOCK, COPY, EPILOGUE, FILL, Calls, StageCall, tokens_from

LIMIT = 64
"""States that wait for a depth at most; then they run without a deep token to ride with."""


class Waiting(NamedTuple):
    """States [n, D] of neighbouring tokens, the earliest at position ``first``, which a depth has not seen yet."""

    first: int
    states: F32


class WaitingQueue:
    """All that waits for one depth, the oldest first; together they are neighbours. Its length is in tokens."""

    __slots__ = ("_count", "_parts")

    def __init__(self, parts: Iterable[Waiting] = ()) -> None:
        self._parts = list(parts)
        self._count = sum(len(part.states) for part in self._parts)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._parts)

    def push(self, part: Waiting) -> None:
        """Add a part where its tokens stand: a draft may have left before the token in front of it."""
        parts = self._parts
        place = len(parts)
        while place and parts[place - 1].first > part.first:
            place -= 1
        parts.insert(place, part)
        self._count += len(part.states)

    @property
    def first(self) -> int:
        """The position of the oldest token; there must be one."""
        return self._parts[0].first

    def take(self, position: int | None = None) -> tuple[F32, I64]:
        """Take out the tokens up to ``position``, n ≥ 1 → states [n, D], positions [n].

        None: all. While drafts are under way, tokens behind ``position`` may wait here already.
        """
        parts, count = self._parts, len(self._parts)
        if position is not None:
            while parts[count - 1].first > position:
                count -= 1
        taken = parts[:count]
        del parts[:count]
        states = taken[0].states if count == 1 else np.concatenate([part.states for part in taken])
        self._count -= len(states)
        return states, tokens_from(taken[0].first, len(states))

    def truncate(self, position: int) -> None:
        """Forget the tokens from ``position`` on."""
        kept = [
            Waiting(first, states[: position - first]) for first, states in self._parts if first < position
        ]
        self._parts, self._count = kept, sum(len(part.states) for part in kept)

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()
        self._count = 0


Joined = Generator[StageCall, F32, tuple[F32, I64]]
"""Calls that end with the states [n, D] of the tokens that run a depth together, and their positions [n]."""


class NothingMissing:
    """Nothing is missing. The base of the others, and what sequences have that run every depth."""

    copies_rows = False
    """Whether the driver has to be able to copy rows between slots."""
    gaps = False
    """Whether slots lack the tokens that left before their depth."""
    complete = False
    """Whether K/V are those of full depth in the end, though tokens left early."""

    def __init__(self, program: Program, layout: PerDepth) -> None:
        self.layout = layout
        self.depths = program.depths
        self.waiting = [WaitingQueue() for _ in range(program.depths)]
        """By depth: what waits for it."""
        self._epilogue_kv = len(program.caches("epilogue")) > 0

    def join(self, depth: int, state: F32, position: I64) -> Joined:
        """Return what runs ``depth`` with ``state`` [1, D] of the token at ``position`` [1], where some wait for it."""
        yield from ()
        return state, position

    def ran(self, depth: int, state: F32, positions: I64) -> None:
        """Note that the tokens at ``positions`` [n] have run ``depth`` → ``state`` [n, D]."""

    def left(self, depth: int, state: F32, position: int) -> Calls:
        """Let the token at ``position`` leave with ``state`` [1, D] after ``depth``."""
        yield from ()

    def catch_up(self) -> Calls:
        """Run all that waits, or fill in its K/V, so that every slot holds every token that it will hold."""
        yield from ()

    @property
    def overdue(self) -> bool:
        """Whether as many wait for some depth as may."""
        return max(map(len, self.waiting)) >= LIMIT

    def take_back(self, position: int, pending: Sequence[StageCall]) -> None:
        """Forget the tokens from ``position`` on. ``pending``: calls that will not be run, the oldest token's first."""
        self.layout.truncate(position)
        for call in pending:  # the tokens before ``position`` that were to ride in it go on waiting
            if call.depth and call.stage in (BLOCK, FILL):
                self.waiting[call.depth].push(Waiting(call.positions[0].item(), call.rows))
        for waiting in self.waiting:
            waiting.truncate(position)


class Exact(NothingMissing):
    """States wait until a token goes deeper, and run with it."""

    complete = True

    def join(self, depth: int, state: F32, position: I64) -> Joined:
        """Return all that wait, of which the newest is ``state`` itself (``ran``)."""
        waiting = self.waiting[depth]
        if len(waiting) == 1:
            waiting.clear()
            return state, position
        yield from ()
        return waiting.take(position.item())

    def ran(self, depth: int, state: F32, positions: I64) -> None:
        """Let those at ``positions`` wait for the next depth, until a token goes there: this one perhaps, at once."""
        if depth + 1 < self.depths:
            self.waiting[depth + 1].push(Waiting(positions.item(0), state.copy()))

    def catch_up(self) -> Calls:
        """Run what waits through all depths, as full depth would have run them."""
        for depth in range(1, self.depths):
            if not self.waiting[depth]:
                continue
            state, positions = self.waiting[depth].take()
            call = self.layout.block(depth, state, positions)
            state = yield call
            self.layout.wrote(call)
            self.ran(depth, state, positions)
            if depth == self.depths - 1 and self._epilogue_kv:
                yield StageCall(EPILOGUE, depth, int(positions[0]), state, positions, 0)


class Propagate(NothingMissing):
    """K/V of skipped depths are projected from the state that a token left with."""

    def join(self, depth: int, state: F32, position: I64) -> Joined:
        """Fill in K/V of those before it that left; the token runs alone."""
        if self.waiting[depth].first < position.item():
            yield from self._fill(depth, position.item())
        return state, position

    def left(self, depth: int, state: F32, position: int) -> Calls:
        """Let it wait for every deeper depth."""
        waits = Waiting(position, state.copy())
        for waiting in self.waiting[depth + 1 :]:
            waiting.push(waits)
        yield from ()

    def catch_up(self) -> Calls:
        """Fill in all that is missing."""
        for depth in range(1, self.depths):
            if self.waiting[depth]:
                yield from self._fill(depth)

    def _fill(self, depth: int, position: int | None = None) -> Calls:
        states, positions = self.waiting[depth].take(position)
        call = StageCall(FILL, depth, positions.item(0), states, positions)
        yield call
        self.layout.wrote(call)


class Latest(NothingMissing):
    """K/V of skipped depths are those of the last depth that a token ran."""

    copies_rows = True

    def left(self, depth: int, state: F32, position: int) -> Calls:
        """Copy its rows into the slots of all deeper depths."""
        call = StageCall(COPY, depth, position, state[:0], np.array([position]))
        yield call
        self.layout.wrote_from(depth + 1, call)


class Skip(NothingMissing):
    """Deeper depths do not see a token that left: their slots have gaps."""

    gaps = True


class Shared(NothingMissing):
    """Depths share slots, and a token that left before all of them were written has its last row in the others."""

    def left(self, depth: int, state: F32, position: int) -> Calls:
        """Copy its rows into the slots that none of its depths wrote."""
        if depth + 1 < (self.layout.slots or 0):
            yield StageCall(COPY, depth, position, state[:0], np.array([position]))


SKIPPED_KV: dict[str, type[NothingMissing]] = {
    "exact": Exact,
    "propagate": Propagate,
    "latest": Latest,
    "shared": Shared,
    "skip": Skip,
}


def copy_to_deeper(call: StageCall, cache: KVCache, sequence: int, depths: int) -> None:
    """Run a COPY call for a ``sequence`` of ``cache``: the rows of a depth go to the slots of deeper ones, each of
    which the sequence has not written."""
    first, count = call.positions.item(0), len(call.positions)
    own, *deeper = (
        cache.slot("block", sequence, depth) for depth in range(call.depth, min(depths, cache.slots))
    )
    for slot in deeper:
        cache.copy_rows("block", slot, cache, own, first, count)
        cache.copy_last("block", slot, own, first, first + count)
