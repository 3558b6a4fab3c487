"""Decoding with early exit: one token through the depths until a rule stops it, and the K/V that it then lacks.

What becomes of the deeper depths' K and V of a token that left:

``exact``      its states wait, and run with the next token that goes deeper, in one call: the same K and V as without
               exits (FREE, arXiv 2310.05424, section 3.2)
``propagate``  K and V are projected from the state it left with (CALM, arXiv 2207.07061, section 3.1.1)
``skip``       deeper depths do not see it: a slot holds who was there, at their true positions
``shared``     nothing is missing, because depths share a slot
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns

import numpy as np

from .backend import F32, Lanes
from .exits import ExitRule, Outcome
from .loop import DepthLoop

LIMIT = 64
"""States that wait at a depth at most; then they run without a deep token to ride with."""


class Waiting:
    """States [n, D] after a depth of tokens that have not run the next one, oldest first."""

    def __init__(self, width: int) -> None:
        self._rows = np.empty((1, LIMIT + 1, width), np.float32)
        self.count = 0

    def push(self, state: F32) -> None:
        """Add state [1, n, D]."""
        n = state.shape[1]
        self._rows[0, self.count : self.count + n] = state[0]
        self.count += n

    def take(self) -> F32:
        """All of them, [1, n, D], valid until the next push; none are left."""
        rows: F32 = self._rows[:, : self.count]
        self.count = 0
        return rows


class EarlyExit:
    """Token by token on a DepthLoop. What the loop holds already was run at full depth."""

    def __init__(self, loop: DepthLoop, rule: ExitRule, heads: Mapping[str, F32], missing: str) -> None:
        self.loop, self.rule, self.heads, self.missing = loop, rule, heads, missing
        self._depths = loop.backend.spec.depths
        self._exact = missing == "exact"
        self._waiting = [Waiting(loop.backend.spec.hidden_size) for _ in range(self._depths - 1)]
        self._fill: dict[int, Lanes] = {}

    def reset(self) -> None:
        """Forget what waits, with the loop's tokens."""
        for waiting in self._waiting:
            waiting.count = 0

    def step(self, token: int) -> tuple[F32, int]:
        """Run one token → its logits [1, V], valid until the next call, and the number of depths that it ran."""
        begin = perf_counter_ns()
        loop, rule, position = self.loop, self.rule, self.loop.cached
        state = loop.enter(np.array([token], np.int64))
        outcome = Outcome(-1, state[0].copy())
        logits: F32 | None = None
        for depth in range(self._depths):
            state = self._run(depth, state, position)
            last = state[:, -1:]
            if depth == self._depths - 1:
                # The coda of those that waited saw their early states: once they are deep, it sees these.
                first = position + 1 - state.shape[1]
                deep = state if loop.epilogue_has_layers else last
                logits = loop.read_out(deep, first if deep is state else position)
                break
            if rule.reads_logits:
                logits = loop.read_out(last, position).copy()
            outcome = Outcome(depth, last[0].copy(), logits, outcome)
            if rule.leaves(outcome, self.heads):
                if logits is None:
                    logits = loop.read_out(last, position)
                self._leave(depth, last, position)
                break
        assert logits is not None
        loop.cached += 1
        if self.missing == "shared":
            loop.filled[:] = [loop.cached] * self._depths
        if self._exact and any(waiting.count >= LIMIT for waiting in self._waiting):
            logits = logits.copy()
            self.catch_up()
        clock = loop.clock
        clock.passes += 1
        clock.total_ns += perf_counter_ns() - begin
        return logits, depth + 1

    def catch_up(self) -> None:
        """Run what waits through all depths, so that every slot holds every token."""
        loop = self.loop
        for depth in range(1, self._depths):
            if not self._waiting[depth - 1].count:
                continue
            state = self._run(depth, self._waiting[depth - 1].take(), loop.filled[depth])
            if depth == self._depths - 1 and loop.epilogue_has_layers:
                loop.read_out(state, loop.cached - state.shape[1])

    def _run(self, depth: int, state: F32, position: int) -> F32:
        """One depth, with all that waits for it in front: state [1, 1, D] → [1, n, D]."""
        if self._exact and depth and self._waiting[depth - 1].count:
            state = self._waiting[depth - 1].take()  # the newest is ``state`` itself
        first = self.loop.filled[depth] if self._exact else position
        out = self.loop.at_depth(depth, state, np.arange(first, first + state.shape[1]))
        if self._exact and depth < self._depths - 1:
            self._waiting[depth].push(out)
        return out

    def _leave(self, depth: int, state: F32, position: int) -> None:
        """A token left after ``depth`` with ``state`` [1, 1, D]."""
        if self.missing != "propagate":
            return
        loop, deeper = self.loop, range(depth + 1, self._depths)
        lanes = self._fill.get(depth)
        if lanes is None:
            ones = np.ones(len(deeper), np.int32)
            slot = loop.cache.slot("block", loop.sequence, depth + 1)
            lanes = self._fill[depth] = Lanes(
                np.array(deeper), np.zeros_like(ones), ones, np.zeros((len(deeper), 1), np.int64), slot
            )
        lanes.cached[:] = position
        lanes.positions[:] = position
        lanes.refresh()
        loop.backend.fill(np.repeat(state, len(deeper), axis=0), lanes, loop.cache)
        for d in deeper:
            loop.filled[d] = position + 1
