"""One sequence under a policy: how its tokens go through prologue, depths and epilogue. Written here only.

``prompt`` runs a text in chunks, ``step`` one more token. Both are generators of stage calls (``stage_call.py``): a
driver runs each call on an engine and sends the answer back. So a sequence gets the same tokens alone, with drafts, and
among others. Three objects answer what differs between policies:

the rule      after which depth a token leaves (``exits.py``), or which tokens a router sends there (``routing.py``)
the layout    which slot of the cache a depth has, and which row of it a token (``kv_layout.py``)
skipped K/V   what becomes of the K/V of depths that a token did not run (``skipped_kv.py``)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal

import numpy as np

from ..engines.backend import F32, I64
from ..engines.kv import KVCache
from ..errors import UsageError
from ..model.program import Program
from ..timing import LoopClock
from .exits import ExitRule, Outcome
from .kv_layout import KV_LAYOUTS
from .policy import Policy
from .routing import Router, RoutingRule
from .skipped_kv import SKIPPED_KV, NothingMissing, Waiting, WaitingQueue
from .stage_call import EPILOGUE, PROLOGUE, WHOLE, PromptCalls, StageCall, StageCalls, tokens_from

LogitRows = Literal["last", "all"] | None
"""Which tokens of a text get logits."""


@dataclass(frozen=True)
class SequenceState:
    """A sequence's context but for the rows of its cache: what can be stored, and gone on from.

    ``cached`` tokens were run, of which the slot of each depth holds ``filled``. ``waiting``: by depth, states of
    tokens that it has not seen yet. ``held``: by depth, the positions [n] of its slot's rows, where some have none.
    ``prefix``: how many of the first tokens see each other.
    """

    cached: int
    filled: tuple[int, ...]
    waiting: tuple[tuple[Waiting, ...], ...]
    held: tuple[I64, ...] = ()
    prefix: int = 0


class TokenSequence:
    """One sequence from empty, under a policy."""

    def __init__(
        self,
        program: Program,
        policy: Policy,
        heads: Mapping[str, F32],
        chunk: Callable[[], int],
        clock: LoopClock | None = None,
    ) -> None:
        """``heads``: what the host computes of a state (``bundle/heads.py``). ``clock``: where decisions are counted.

        ``chunk`` returns the most tokens of a text that may go through in one piece.
        """
        self.program, self.rule, self.heads, self.chunk = program, policy.rule, heads, chunk
        self.clock = clock or LoopClock(program.depths)
        skipped = SKIPPED_KV[policy.skipped_kv] if policy.rule.exits_early else NothingMissing
        self.layout = KV_LAYOUTS[policy.kv](program.depths, skipped.gaps)
        self.skipped = skipped(program, self.layout)
        self.whole = False
        """Whether the driver takes WHOLE calls of a text's chunks."""
        self.cached = 0
        """Tokens that were run."""
        self.prefix = 0
        """How many of the first tokens see each other; of a model without such a mask, 0."""
        self._router = Router(program, heads) if isinstance(policy.rule, RoutingRule) else None
        self._may_leave = policy.rule.exits_early or self._router is not None
        self._depths, self._prefix_lm = program.depths, program.prefix_lm
        self._epilogue_kv = len(program.caches("epilogue")) > 0
        self._every_depth = np.array([program.depths])
        self._no_logits = np.empty((0, program.vocab_size), np.float32)
        self._first_carry = program.loop.carries[0].width

    @property
    def grows(self) -> bool:
        """Whether texts one after the other get what they would get as one: not where a text is treated as a whole."""
        return self.layout.grows and not self.rule.whole_text

    def saw_prompt(self, tokens: int) -> bool:
        """Return whether what was run is the same in a text whose prompt is its first ``tokens`` tokens: it is, unless
        those of a prompt see each other, and the prompt was another one."""
        return not self._prefix_lm or self.prefix in (0, tokens)

    @property
    def filled(self) -> list[int]:
        """By depth: tokens whose K/V are in its slot."""
        return self.layout.filled

    @property
    def steps_like_prompt(self) -> bool:
        """Whether steps leave the K/V that a prompt of the same tokens leaves.

        An exit rule lets tokens of steps go, not those of a prompt; a router treats both alike.
        """
        rule = self.rule
        return isinstance(rule, RoutingRule) or not rule.exits_early or self.skipped.complete

    def prompt(self, ids: I64, rows: LogitRows = "last", prefix: int | None = None) -> PromptCalls:
        """Run ids [S], S ≥ 1: every token at full depth, or as the router says → logits [N, V], depths run [S].

        N is 1 for the ``"last"`` token, S for ``"all"``, 0 for None (the caches are filled all the same). ``prefix``:
        of a text from empty, how many of the first tokens see each other where the model's mask is made for that
        (``Attend``); 1: none, so that every token sees those before it only; None: all.
        """
        yield from self.skipped.catch_up()
        ran = np.empty(len(ids), np.int64)
        kept: list[F32] = []
        logits = self._no_logits
        start = end = 0
        while end < len(ids):
            start, end = end, self._piece(ids, end, prefix)
            reads = {None: 0, "last": int(end == len(ids)), "all": end - start}[rows]
            positions = tokens_from(self.cached, end - start)
            logits, ran[start:end] = yield from self._chunk(ids[start:end], positions, reads, self.whole)
            if rows == "all":
                kept.append(logits.copy())
        if kept:
            logits = kept[0] if len(kept) == 1 else np.concatenate(kept)
        return logits, ran

    def _piece(self, ids: I64, start: int, prefix: int | None) -> int:
        """Return where the piece of ids [S] ends that begins at ``start``."""
        if self._prefix_lm and not self.cached:
            self.prefix = len(ids) if prefix is None else min(max(prefix, 1), len(ids))
            return self.prefix
        return len(ids) if self.rule.whole_text else min(start + self.chunk(), len(ids))

    @property
    def is_prompt(self) -> bool:
        """Whether one more token is a prompt by itself, which no rule lets go: it is the first one, of a model whose
        prompts see themselves. If it left, it would come to deeper depths in a call with later ones, and see those."""
        return self._prefix_lm and not self.cached

    def step(self, token: int, position: int | None = None) -> StageCalls:
        """Run one more token, until the rule lets it go: at ``cached``, or at ``position`` behind others under way.

        → logits [1, V], the depths that it ran.
        """
        at = self.cached if position is None else position
        ids, here = np.array([token]), np.array([at])
        if isinstance(self.rule, ExitRule) and self.rule.exits_early and not self.is_prompt:
            if self.skipped.overdue:
                yield from self.skipped.catch_up()
            logits, depth = yield from self._until_exit(self.rule, ids, here)
            self._finish(at + 1)
            return logits, depth
        logits, ran = yield from self._chunk(ids, here, 1, False)
        return logits, ran.item()

    def whole_step(self, token: int) -> StageCall | None:
        """Return the one call that runs one more token through every depth; None where a token goes another way.

        A driver of a sequence alone requests it before ``step``, because a generator costs as much as two depths do,
        and tells ``ran_whole`` when the call was run.
        """
        first = self.cached
        if self._may_leave or self.layout.filled[-1] != first:
            return None
        return StageCall(WHOLE, 0, first, np.array([token]), np.array([first]))

    def ran_whole(self, call: StageCall) -> None:
        """Note that ``call``, of all stages, was run."""
        self.layout.wrote_from(0, call)
        self._finish(call.cached + len(call.rows))

    def _chunk(self, ids: I64, positions: I64, reads: int, whole: bool) -> PromptCalls:
        """Run the tokens ids [n] at ``positions`` [n], which are neighbours, through the depths together.

        ``reads``: of how many of the last ones logits are wanted. ``whole``: by a WHOLE call, if they go the same way.
        """
        n, first = len(ids), positions.item(0)
        ran = self._every_depth if n == 1 else np.full(n, self._depths)
        # Such a call puts a token's rows at its position: not behind tokens that are missing from a slot, and the
        # deepest slot has the fewest.
        if whole and self._router is None and self.layout.filled[-1] == first:
            call = StageCall(WHOLE, 0, first, ids, positions, reads)
            logits = yield call
            self.ran_whole(call)
            return logits if reads else self._no_logits, ran
        state = yield StageCall(PROLOGUE, 0, first, ids, positions)
        if self._router is None:
            for depth in range(self._depths):
                call = self.layout.block(depth, state, positions)
                state = yield call
                self.layout.wrote(call)
        else:
            state, ran = yield from self._routed(self._router, state, positions)
        logits = self._no_logits
        if reads or self._epilogue_kv:
            logits = yield StageCall(EPILOGUE, self._depths - 1, first, state, positions, reads)
        self._finish(first + n)
        return logits if reads else self._no_logits, ran

    def _finish(self, cached: int) -> None:
        self.cached = cached
        self.layout.finished(cached)

    def _until_exit(self, rule: ExitRule, ids: I64, here: I64) -> StageCalls:
        """Run one token, ids [1] at ``here`` [1], through the depths until ``rule`` lets it go."""
        layout, skipped = self.layout, self.skipped
        at, last = here.item(), self._depths - 1
        state = yield StageCall(PROLOGUE, 0, at, ids, here)
        outcome = Outcome(-1, state[:, : self._first_carry].copy())
        positions = here
        for depth in range(self._depths):
            if skipped.waiting[depth]:
                state, positions = yield from skipped.join(depth, state, here)
            call = layout.block(depth, state, positions)
            state = yield call
            layout.wrote(call)
            skipped.ran(depth, state, positions)
            if depth == last:
                break
            if len(state) > 1:  # tokens that had waited ran along
                state, positions = state[-1:], here
            deciding = perf_counter_ns()
            logits = None
            if rule.reads_logits:
                logits = (yield StageCall(EPILOGUE, last, at, state, here)).copy()
            outcome = Outcome(depth, state[:, : self._first_carry].copy(), logits, outcome)
            leaves = rule.leaves(outcome, self.heads)
            self.clock.decided(deciding)
            if leaves:
                yield from skipped.left(depth, state, at)
                if logits is None:
                    logits = yield StageCall(EPILOGUE, last, at, state, here)
                return logits, depth + 1
        if len(state) > 1 and not self._epilogue_kv:
            state, positions = state[-1:], here
        # The epilogue saw the early states of those that waited; now that they are deep, it sees these.
        logits = yield StageCall(EPILOGUE, last, positions.item(0), state, positions)
        return logits, self._depths

    def _routed(
        self, router: Router, state: F32, positions: I64
    ) -> Generator[StageCall, F32, tuple[F32, I64]]:
        """Run state [n, D] of the tokens at ``positions`` through the depths that ``router`` sends each of them to.

        → the loop's output [n, D], depths run [n].
        """
        assert isinstance(self.rule, RoutingRule)
        chunk = router.chunk(self.rule, state.copy(), self.clock)
        for depth in range(self.rule.stop):
            chosen = chunk.choose(depth)
            pieces = list(self.layout.row_calls(depth, chosen, len(state)))
            if not pieces:
                break
            out = np.empty((len(chosen), self.program.width), np.float32)
            for piece in pieces:
                call = self.layout.block(depth, chunk.state[piece.rows], positions[piece.rows])
                found = yield call
                self.layout.wrote(call)
                out[piece.part] = found[piece.kept]
            chunk.update(out)
        return chunk.output(), chunk.ran

    def rows_before(self, position: int) -> list[int]:
        """Return, by depth, how many rows of its slot are of tokens before ``position``."""
        return self.layout.rows_before(position)

    def can_truncate(self, cache: KVCache, tokens: int) -> bool:
        """Return whether its slots of ``cache`` still hold what they held when it had run ``tokens`` tokens."""
        slots = [(self.cached, tokens), *zip(self.filled, self.rows_before(tokens), strict=True)]
        if 0 < tokens < self.prefix:
            return False  # what is left has seen what is to go
        return all(cache.can_truncate(*slot) for slot in slots)

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens, and what waits of them. UsageError when there are fewer."""
        if not 0 <= tokens <= self.cached:
            raise UsageError(f"cannot truncate {self.cached} cached tokens to {tokens}")
        self.take_back(tokens, [])

    def take_back(self, position: int, pending: list[StageCall]) -> None:
        """Forget the tokens from ``position`` on: their rows, and the states that they took along.

        ``pending``: the calls that they requested and will not get, the oldest token's first.
        """
        self.skipped.take_back(position, pending)
        self.cached = min(self.cached, position)
        self.prefix = min(self.prefix, position)

    def snapshot(self) -> SequenceState:
        """Return its state now, a copy that later steps leave as it is."""
        return SequenceState(
            self.cached,
            tuple(self.filled),
            tuple(tuple(waiting) for waiting in self.skipped.waiting),
            tuple(np.array(held, np.int64) for held in self.layout.held),
            self.prefix,
        )

    def restore(self, state: SequenceState) -> None:
        """Go on from ``state``, of a sequence of the same model under the same policy, whose rows the cache holds.

        UsageError for one that cannot be.
        """
        if len(state.filled) != self._depths:
            raise UsageError(f"the state of a sequence of {len(state.filled)} depths, wanted {self._depths}")
        if len(state.held) != len(self.layout.held):
            kinds = ["without gaps in its slots", "with gaps"]
            found, wanted = (kinds[len(held) > 0] for held in (state.held, self.layout.held))
            raise UsageError(
                f"the state of a sequence {found}, wanted one {wanted}: the policy is another one"
            )
        self.cached, self.prefix = state.cached, state.prefix
        self.layout.filled[:] = state.filled
        self.layout.held = [held.tolist() for held in state.held]
        self.skipped.waiting = [WaitingQueue(waiting) for waiting in state.waiting]
