"""One sequence as a list of wishes: a generator that asks for engine calls and is sent what they gave.

Whoever runs many of them can put what several ask for into one call (``scheduler.py``). A course does what ``Walk``
does on a DepthLoop, in the same order, so that a sequence among others gets the tokens that it gets alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines.backend import F32, I64
from ..errors import UsageError
from ..model.program import Program
from .early import LIMIT
from .exits import ExitRule, Outcome
from .policy import Policy
from .routing import Router, RoutingRule, shared_calls


@dataclass(slots=True)
class StageCall:
    """One call of ``stage`` (prologue, block, epilogue or fill) for n rows behind ``cached`` tokens of a slot.

    rows: ids [n] for the prologue, else states [n, D]. positions [n]. The answer is the states [n, D] after it, of the
    epilogue the logits [1, V] of the last row, of fill [0, D]. Answers belong to the course.
    """

    stage: str
    depth: int
    cached: int
    rows: npt.NDArray[Any]
    positions: I64


StageCalls = Generator[StageCall, F32, tuple[F32, int]]
"""Ends with the logits [1, V] of the last token and the depths that it ran."""


class TokenSequence:
    """One sequence from empty, under a policy."""

    def __init__(
        self, program: Program, policy: Policy, heads: Mapping[str, F32], chunk: Callable[[], int]
    ) -> None:
        """``chunk``: asked for the most tokens of a prompt that may go through in one piece."""
        self.program, self.rule, self.heads, self.chunk = program, policy.rule, heads, chunk
        self._depths = program.depths
        self.cached = 0
        """Tokens that were run."""
        self.filled = [0] * program.depths
        """Tokens whose K and V are in each depth's slot."""
        self.skipped_kv = policy.skipped_kv
        self._router = Router(program, heads) if isinstance(policy.rule, RoutingRule) else None
        self._exact = policy.skipped_kv == "exact"
        self._never = isinstance(policy.rule, ExitRule) and policy.rule.never
        self._shares = program.shares_kv
        self._coda = len(program.caches("epilogue")) > 0
        # By depth, the oldest first: positions of tokens that the next depth has not seen, and their states [n, D].
        self._waiting: list[list[tuple[int, F32]]] = [[] for _ in range(program.depths - 1)]

    def restart(self, cached: int, filled: list[int]) -> None:
        """Behind ``cached`` tokens that somebody else ran; ``filled``: how many of them each depth's slot holds."""
        self.cached, self.filled = cached, list(filled)
        for waiting in self._waiting:
            waiting.clear()

    def prompt(self, ids: I64) -> StageCalls:
        """Run ids [S]: at full depth, or routed."""
        depth = self._depths
        start = 0
        while True:
            size = self.chunk()
            part, last = ids[start : start + size], start + size >= len(ids)
            positions = np.arange(self.cached, self.cached + len(part))
            state = yield StageCall("prologue", 0, self.cached, part, positions)
            if self._router is None:
                for d in range(self._depths):
                    state = yield StageCall("block", d, self.filled[d], state, positions)
                    self.filled[d] += len(part)
            else:
                depth = yield from self._routed(state, positions)
            logits = state[:0]
            if last or self._coda:
                logits = yield self._read(state, self.cached)
            self.cached += len(part)
            if self._shares:
                self.filled[:] = [self.cached] * self._depths
            start += size
            if last:
                return logits, depth

    def step(self, token: int, position: int | None = None) -> StageCalls:
        """Run one more token, until the rule lets it go: at ``cached``, or at ``position`` behind others under way."""
        if any(map(self._full, range(1, self._depths))):
            yield from self._catch_up()
        at = self.cached if position is None else position
        here = np.array([at])
        state = yield StageCall("prologue", 0, at, np.array([token], np.int64), here)
        if isinstance(self.rule, RoutingRule):
            ran = yield from self._routed(state, here)
            logits = yield self._read(state, at)
        else:
            logits, ran = yield from self._early(self.rule, state, here)
        self.cached = at + 1
        if self._shares:
            self.filled[:] = [self.cached] * self._depths
        return logits, ran

    def take_back(self, position: int, pending: list[StageCall], ran: list[int]) -> None:
        """The tokens from ``position`` on never were, which the latest steps ran: forget their rows.

        ``pending``: what they asked for and will not get, the oldest first. ``ran``: by depth, the rows that they have.
        """
        if self.skipped_kv == "skip":
            self.filled = [n - m for n, m in zip(self.filled, ran, strict=True)]
            return
        self.filled = [min(n, position) for n in self.filled]
        for ask in pending:  # what waited before goes on waiting
            if ask.depth and ask.stage in ("block", "fill"):
                self._waiting[ask.depth - 1].insert(0, (ask.positions[0].item(), ask.rows))
        for waiting in self._waiting:
            waiting[:] = [(first, state[: position - first]) for first, state in waiting if first < position]

    def _early(self, rule: ExitRule, state: F32, here: I64) -> StageCalls:
        """As ``EarlyExit.step``: state [1, D] at ``here`` [1] through the depths."""
        seen = self.program.loop.carries[0].width
        outcome = Outcome(-1, state[:, :seen])
        logits: F32 | None = None
        final = self._depths - 1
        for depth in range(final):
            state = yield from self._run(depth, state, here)
            if rule.never:
                continue
            last = state[-1:]
            if rule.reads_logits:
                logits = yield StageCall("epilogue", final, here.item(), last, here)
            outcome = Outcome(depth, last[:, :seen], logits, outcome)
            if rule.leaves(outcome, self.heads):
                if logits is None:
                    logits = yield StageCall("epilogue", final, here.item(), last, here)
                if self.skipped_kv == "propagate":
                    for waiting in self._waiting[depth:]:
                        waiting.append((here.item(), last))
                return logits, depth + 1
        state = yield from self._run(final, state, here)
        # The coda of those that waited saw their early states: once they are deep, it sees these.
        deep = state if self._coda else state[-1:]
        logits = yield self._read(deep, here.item() + 1 - len(deep))
        return logits, final + 1

    def _run(self, depth: int, state: F32, here: I64) -> Generator[StageCall, F32, F32]:
        """One depth, with all that waits for it in front: state [1, D] at ``here`` [1] → [n, D]."""
        cached = int(here[0]) if self._shares else self.filled[depth]
        if depth and self._waiting[depth - 1]:
            together = self._take(depth)
            if self._exact:
                state = together  # the newest is ``state`` itself
            else:
                yield from self._fill(depth, together)
                cached = self.filled[depth]
        n = len(state)
        positions = here if n == 1 else np.arange(cached, cached + n)
        state = yield StageCall("block", depth, cached, state, positions)
        self.filled[depth] += n
        if self._exact and depth < self._depths - 1 and not self._never:
            self._waiting[depth].append((positions[0].item(), state))
        return state

    def _catch_up(self) -> Generator[StageCall, F32, None]:
        """Run all that waits, or fill in its K and V, as ``EarlyExit.catch_up``."""
        for depth in range(1, self._depths):
            if not self._waiting[depth - 1]:
                continue
            state = self._take(depth)
            if not self._exact:
                yield from self._fill(depth, state)
                continue
            first = self.filled[depth]
            state = yield StageCall("block", depth, first, state, np.arange(first, first + len(state)))
            self.filled[depth] += len(state)
            if depth < self._depths - 1:
                self._waiting[depth].append((first, state))
            elif self._coda:
                yield self._read(state, self.cached - len(state))

    def _fill(self, depth: int, state: F32) -> Generator[StageCall, F32, None]:
        """K and V of ``depth`` for tokens that left with ``state`` [n, D] before it."""
        first, n = self.filled[depth], len(state)
        yield StageCall("fill", depth, first, state, np.arange(first, first + n))
        self.filled[depth] += n

    def _take(self, depth: int) -> F32:
        """The states [n, D] that wait for ``depth``; none are left."""
        waiting = self._waiting[depth - 1]
        state = waiting[0][1] if len(waiting) == 1 else np.concatenate([state for _, state in waiting])
        waiting.clear()
        return state

    def _full(self, depth: int) -> bool:
        """Do as many wait for ``depth`` as may?"""
        waiting = self._waiting[depth - 1]
        return len(waiting) >= LIMIT or (self._exact and sum(len(state) for _, state in waiting) >= LIMIT)

    def _routed(self, x: F32, positions: I64) -> Generator[StageCall, F32, int]:
        """x [n, D] is brought to the loop's output in place, as in ``RoutedLoop`` → depths that the last one ran."""
        router, rule = self._router, self.rule
        assert router is not None
        assert isinstance(rule, RoutingRule)
        if router.routing.kind == "token":
            choice, gates = router.token(rule, x)
            h = x.copy()
            for depth in range(int(choice.max()) + 1):
                rows = np.flatnonzero(choice >= depth)
                h[rows] = yield from self._rows(depth, h, rows, positions)
            x += gates[:, None] * h
            return int(choice[-1]) + 1
        rows, ran = np.arange(len(x)), 0
        for depth in range(rule.stop):
            chosen, gates = router.expert(rule, depth, x[rows], len(x))
            rows = rows[chosen]
            if not len(rows) and (depth or not self._shares):
                break
            out = yield from self._rows(depth, x, rows, positions)
            x[rows] += gates[:, None] * out
            ran += int(len(x) - 1 in rows)
        return ran

    def _rows(self, depth: int, x: F32, rows: I64, positions: I64) -> Generator[StageCall, F32, F32]:
        """x [n, D] at ``positions`` [n]: its ``rows`` [k] through one depth → [k, D], as in ``RoutedLoop``."""
        if not self._shares:
            out = yield StageCall("block", depth, self.filled[depth], x[rows], positions[rows])
            self.filled[depth] += len(rows)
            return out
        out = np.empty((len(rows), x.shape[1]), np.float32)
        for call, part in shared_calls(depth, rows, len(x)):
            found = yield StageCall("block", depth, int(positions[call.start]), x[call], positions[call])
            out[part] = found[rows[part] - call.start]
        return out

    def _read(self, state: F32, first: int) -> StageCall:
        positions = np.arange(first, first + len(state))
        return StageCall("epilogue", self._depths - 1, first, state, positions)


def check_batched(program: Program, policy: Policy) -> None:
    """UsageError, one line, for a policy that only a sequence alone can have."""
    if policy.kv == "last":
        raise UsageError(
            "KV policy last runs a prompt in caches of its own; many users at once take per-depth"
        )
    if policy.skipped_kv == "latest":
        raise UsageError(
            "policy latest for skipped K and V copies rows of one sequence's slots; many users at once take exact, "
            "propagate or skip"
        )
    if isinstance(policy.rule, RoutingRule) and policy.rule.topk:
        raise UsageError(
            "exit rule chunk-topk takes its share of a whole prompt; many users at once take router"
        )
