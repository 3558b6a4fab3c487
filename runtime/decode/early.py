"""Decoding with early exit: one token through the depths until a rule stops it, and the K/V that it then lacks.

What becomes of the deeper depths' K and V of a token that left:

``exact``      its states wait, and run with the next token that goes deeper, in one call: the same K and V as without
               exits (FREE, arXiv 2310.05424, section 3.2)
``propagate``  K and V are projected from the state it left with (CALM, arXiv 2207.07061, section 3.1.1), for all that
               left since a token last went that deep in one call
``latest``     they are those of the last depth that it ran (Huginn's lookup ``latest-m4``, arXiv 2502.05171)
``skip``       deeper depths do not see it: a slot holds who was there, at their true positions
``shared``     nothing is missing, because depths share a slot
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns

import numpy as np

from ..engines.backend import F32
from ..errors import UsageError
from .exits import ExitRule, Outcome
from .loop import DepthLoop

LIMIT = 64
"""States that wait at a depth at most; then they run without a deep token to ride with."""


class Waiting:
    """States [n, D] of tokens that the next depth has not seen, oldest first."""

    def __init__(self, width: int, depth: int) -> None:
        """They wait after ``depth``, where those that waited after the depths before it may join them at once."""
        self._rows = np.empty((1, (depth + 1) * LIMIT + 1, width), np.float32)
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

    def __init__(self, loop: DepthLoop, rule: ExitRule, heads: Mapping[str, F32], skipped_kv: str) -> None:
        self.loop, self.rule, self.heads, self.skipped_kv = loop, rule, heads, skipped_kv
        self._depths = loop.backend.program.depths
        self._seen = loop.backend.program.loop.carries[0].width
        self._exact = skipped_kv == "exact"
        if skipped_kv == "latest" and not loop.backend.can.host_rows:
            raise UsageError(
                f"policy 'latest' for skipped K and V copies rows, and engine {loop.backend.name} has them to itself; "
                "choose another policy or engine"
            )
        self._waiting = [Waiting(loop.backend.program.width, d) for d in range(self._depths - 1)]

    def reset(self) -> None:
        """Forget what waits, with the loop's tokens."""
        for waiting in self._waiting:
            waiting.count = 0

    def step(self, token: int) -> tuple[F32, int]:
        """Run one token → its logits [1, V], valid until the next call, and the number of depths that it ran."""
        begin = perf_counter_ns()
        loop, rule, position = self.loop, self.rule, self.loop.cached
        state = loop.enter(np.array([token], np.int64))
        outcome = Outcome(-1, state[0, :, : self._seen].copy())
        logits: F32 | None = None
        for depth in range(self._depths):
            state = self._run(depth, state, position)
            last = state if state.shape[1] == 1 else state[:, -1:]  # an engine knows its own buffer
            if depth == self._depths - 1:
                # The coda of those that waited saw their early states: once they are deep, it sees these.
                first = position + 1 - state.shape[1]
                deep = state if loop.epilogue_has_layers else last
                logits = loop.read_out(deep, first if deep is state else position)
                break
            deciding = perf_counter_ns()
            if rule.reads_logits:
                logits = loop.read_out(last, position).copy()
            outcome = Outcome(depth, last[0, :, : self._seen].copy(), logits, outcome)
            leaves = rule.leaves(outcome, self.heads)
            loop.clock.decided(deciding)
            if leaves:
                if logits is None:
                    logits = loop.read_out(last, position)
                if self.skipped_kv == "propagate":
                    for waiting in self._waiting[depth:]:
                        waiting.push(last)
                elif self.skipped_kv == "latest":
                    loop.repeat(depth, position)
                break
        assert logits is not None
        loop.cached += 1
        if self.skipped_kv == "shared":
            loop.filled[:] = [loop.cached] * self._depths
        if any(waiting.count >= LIMIT for waiting in self._waiting):
            logits = logits.copy()
            self.catch_up()
        clock = loop.clock
        clock.passes += 1
        clock.total_ns += perf_counter_ns() - begin
        return logits, depth + 1

    def catch_up(self) -> None:
        """Run what waits through all depths, or fill in its K and V, so that every slot holds every token."""
        loop = self.loop
        for depth in range(1, self._depths):
            if not self._waiting[depth - 1].count:
                continue
            if not self._exact:
                loop.fill_in(depth, self._waiting[depth - 1].take())
                continue
            state = self._run(depth, self._waiting[depth - 1].take(), loop.filled[depth])
            if depth == self._depths - 1 and loop.epilogue_has_layers:
                loop.read_out(state, loop.cached - state.shape[1])

    def _run(self, depth: int, state: F32, position: int) -> F32:
        """One depth, with all that waits for it in front: state [1, 1, D] → [1, n, D]."""
        loop = self.loop
        if depth and self._waiting[depth - 1].count:
            if self._exact:
                state = self._waiting[depth - 1].take()  # the newest is ``state`` itself
            else:
                loop.fill_in(depth, self._waiting[depth - 1].take())
        behind = self._exact or loop.filled[depth] == position
        out = loop.at_depth(depth, state, None if behind else np.array([position]))
        if self._exact and depth < self._depths - 1:
            self._waiting[depth].push(out)
        return out
