"""Pipelined decoding under an exit rule: a token that its rule lets go is final where it left, and its lane is empty.

Its logits there are the answer for its position as soon as all tokens before it are done, because a coda sees tokens
as they left. With ``propagate`` its K and V of the deeper depths are filled in as it leaves, so that the row of a token
is its position. With ``skip`` a slot holds those who were there: which rows are whose is kept for the tokens in flight,
and a refuted token takes its rows with it by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from .acceptance import Pace
from .backend import F32, I64, Lanes
from .early import EarlyExit
from .exits import ExitRule, Outcome
from .loop import DepthLoop
from .pipelined import NONE, Pipelined
from .sampling import Choose


@dataclass(slots=True)
class Flight:
    """A token whose logits the caller has not got: its state [1, D] after ``depth``, and whether it left there."""

    depth: int
    state: F32
    outcome: Outcome
    left: bool = False


class PipelinedExits(Pipelined):
    """Token by token on a DepthLoop under ``rule``; ``depth`` is how many depths the last token ran."""

    def __init__(
        self,
        loop: DepthLoop,
        draft: Choose,
        pace: Pace,
        rule: ExitRule,
        heads: Mapping[str, F32],
        missing: str,
    ) -> None:
        """``missing``: ``propagate`` or ``skip``."""
        super().__init__(loop, draft, pace)
        self._rule, self._heads, self._skips = rule, heads, missing == "skip"
        self._early = EarlyExit(loop, rule, heads, missing)
        self._flights: dict[int, Flight] = {}  # by position, oldest first
        self._ready: dict[int, F32] = {}  # logits [1, V] of those that are done, and all before them
        self._rows = list(loop.filled)  # of final tokens in each depth's slot
        self._who: list[list[int]] = [[] for _ in range(self._depths)]  # positions of the rows behind those
        self._made: dict[tuple[int, ...], tuple[Lanes, F32]] = {}
        self._readers: dict[int, tuple[Lanes, F32]] = {}
        self._fills: dict[int, tuple[Lanes, F32]] = {}

    def begin(self, ids: I64) -> None:
        """As in Pipelined; the sequence begins anew."""
        super().begin(ids)
        self._early.reset()
        self._rows = list(self.loop.filled)

    def step(self, token: int) -> F32:
        """Run the final ``token`` until it leaves → its logits [1, V], valid until the next call."""
        begin = self._since = perf_counter_ns()
        loop, position = self.loop, self.loop.cached
        if position != self._final:  # truncated
            self._cancel(0)
            self._final, self._rows = position, list(loop.filled)
        drafted = self._newest >= position
        confirmed = drafted and int(self._tokens[position]) == token
        self._settle(position, token, drafted, confirmed)
        if not confirmed:
            self._cancel(position)
            if self.pace.plan == self.pace.sequential:
                return self._sequentially(token)
            loop.checked(np.array([token], np.int64))
            self._early.catch_up()
            self._rows = list(loop.filled)
            self._pass(token)
        while position not in self._ready:
            self._pass(self._next())
        logits = self._ready.pop(position)
        self.depth = self._flights.pop(position).depth + 1
        for depth, who in enumerate(self._who):
            if who and who[0] == position:
                del who[0]
                self._rows[depth] += 1
        loop.cached = self._final = position + 1
        loop.filled[:] = self._rows if self._skips else [loop.cached] * self._depths
        loop.clock.tokens += 1
        self.pace.took(perf_counter_ns() - begin)
        self.pace.token()
        return logits

    def _sequentially(self, token: int) -> F32:
        logits, self.depth = self._early.step(token)
        self._tokens[self._final] = token
        self._newest = self._final
        self._final, self._rows = self._final + 1, list(self.loop.filled)
        self.pace.alone(perf_counter_ns() - self._since)
        self.pace.token()
        return logits

    def _cancel(self, position: int) -> None:
        super()._cancel(position)
        for gone in [p for p in self._flights if p >= position]:
            del self._flights[gone]
            self._ready.pop(gone, None)
        for who in self._who:
            while who and who[-1] >= position:
                who.pop()

    def _pass(self, token: int | None) -> F32 | None:
        """One pass, with ``token`` behind the newest one; who is done with it is in ``_ready``."""
        clock, at = self.loop.clock, self._at
        at.pop()
        at.insert(0, NONE)
        for depth in range(1, self._depths):  # whoever left has no lane any more
            flight = self._flights.get(at[depth])
            if flight is None or flight.left:
                at[depth] = NONE
        start = perf_counter_ns()
        if token is not None:
            self._newest += 1
            at[0] = self._newest
            self._tokens[self._newest] = token
            entered = self._prologue(token, self._newest)[0].copy()
            self._flights[self._newest] = Flight(-1, entered, Outcome(-1, entered))
        active = [d for d in range(self._depths) if at[d] != NONE]
        blocked = perf_counter_ns()
        lanes = self._block_of(active) if active else 0
        ran = perf_counter_ns()
        moved = [at[d] for d in reversed(active)]
        rows = self._judge(moved)
        end = perf_counter_ns()
        clock.block_calls += bool(active)
        clock.rows += len(active)
        clock.passes += 1
        for depth in active:
            clock.calls[depth] += 1
            clock.block_ns[depth] += (ran - blocked) // lanes
        clock.engine_ns += end - start
        clock.total_ns += end - self._since
        if lanes:
            self.pace.passed(lanes, ran - blocked, rows, end - ran, end - self._since)
        self._since = end
        return None

    def _block_of(self, active: list[int]) -> int:
        """The tokens at the depths ``active`` one depth further → lanes of the call."""
        low, high = active[0], active[-1]
        made = self._made.get(tuple(active))
        if made is None:
            n = high - low + 1
            tokens = np.isin(np.arange(low, high + 1), active).astype(np.int32)
            slot = self.loop.cache.slot("block", self.loop.sequence, low)
            made = self._made[tuple(active)] = (
                Lanes(
                    np.arange(low, high + 1), np.zeros(n, np.int32), tokens, np.zeros((n, 1), np.int64), slot
                ),
                np.zeros((n, 1, self._width), np.float32),
            )
        lanes, state = made
        lanes.cached[:] = self._at[high]  # engines want a length of idle lanes, too
        for depth in active:
            position = self._at[depth]
            lanes.positions[depth - low, 0] = position
            lanes.cached[depth - low] = self._rows[depth] + len(self._who[depth]) if self._skips else position
            if self._skips:
                self._who[depth].append(position)
            state[depth - low] = self._flights[position].state
        lanes.refresh()
        out = self.loop.backend.block(state, lanes, self.loop.cache)
        for depth in active:
            flight = self._flights[self._at[depth]]
            flight.depth, flight.state = depth, out[depth - low].copy()
        return high - low + 1

    def _judge(self, moved: list[int]) -> int:
        """Who of ``moved`` leaves, and what is read out → how many rows that were."""
        flights, plan, last = self._flights, self.pace.plan, self._depths - 1
        logits: dict[int, F32] = {}
        if self._rule.reads_logits:
            logits = self._read(moved)
        for p in moved:
            self._decide(flights[p], logits.get(p), p)
        done = [p for p in flights if p not in self._ready and flights[p].left]
        if self.loop.epilogue_has_layers:  # a coda sees the tokens before as they left
            waiting = next((p for p, flight in flights.items() if not flight.left), self._newest + 1)
            done = [p for p in done if p < waiting]
        wanted = [
            p
            for p in flights
            if p in done
            or (p in moved and (flights[p].left or flights[p].depth == plan.depth))
            or (p in moved and plan.judge and flights[p].depth > plan.depth)
        ]
        if not self._rule.reads_logits:
            logits = self._read(wanted)
        for p in done:
            self._ready[p] = logits[p]
        self._reads = []
        kept: list[F32] = []
        for p in wanted:
            if flights[p].depth < last:
                self._reads.append((p, flights[p].depth, len(kept)))
                kept.append(logits[p][0])
        self._logits = np.stack(kept) if kept else None
        return len(logits)

    def _decide(self, flight: Flight, logits: F32 | None, position: int) -> None:
        """Does it leave? Then the deeper depths get its K and V, unless they skip it."""
        if flight.depth == self._depths - 1:
            flight.left = True
            return
        deciding = perf_counter_ns()
        flight.outcome = Outcome(flight.depth, flight.state, logits, flight.outcome)
        flight.left = self._rule.leaves(flight.outcome, self._heads)
        self.loop.clock.decided(deciding)
        if flight.left and not self._skips:
            self._fill(flight, position)

    def _fill(self, flight: Flight, position: int) -> None:
        first = flight.depth + 1
        n = self._depths - first
        made = self._fills.get(first)
        if made is None:
            slot = self.loop.cache.slot("block", self.loop.sequence, first)
            zeros = np.zeros((n, 1), np.int64)
            lanes = Lanes(
                np.arange(first, self._depths), np.zeros(n, np.int32), np.ones(n, np.int32), zeros, slot
            )
            made = self._fills[first] = (lanes, np.zeros((n, 1, self._width), np.float32))
        lanes, state = made
        lanes.cached[:] = position
        lanes.positions[:] = position
        lanes.refresh()
        state[:] = flight.state
        self.loop.backend.fill(state, lanes, self.loop.cache)

    def _read(self, wanted: list[int]) -> dict[int, F32]:
        """Logits [1, V] of the positions ``wanted``; the flights before the last of them are a coda's lane."""
        if not wanted:
            return {}
        first = next(iter(self._flights))
        n = wanted[-1] - first + 1 if wanted[-1] >= wanted[0] else wanted[0] - first + 1
        made = self._readers.get(n)
        if made is None:
            slot = self.loop.cache.slot("epilogue", self.loop.sequence, self._depths - 1)
            lane = Lanes.single(self._depths - 1, 0, n, slot)
            made = self._readers[n] = (lane, np.zeros((1, n, self._width), np.float32))
        lane, state = made
        lane.cached[0] = first
        lane.positions[0] = np.arange(first, first + n)
        lane.refresh()
        for i in range(n):
            state[0, i] = self._flights[first + i].state[0]
        rows = np.array([p - first for p in wanted])
        logits = self.loop.backend.epilogue(state, rows, lane, self.loop.cache).copy()
        return {p: logits[i : i + 1] for i, p in enumerate(wanted)}
