"""Pipelined decoding under an exit rule or a router: several tokens of one sequence under way at once.

Each token runs as it does alone (``sequence.py``), as a generator of stage calls; a pass puts those of all that are
under way into one block call, a lane for each depth. A token that its rule lets go leaves an empty lane. Its logits are
final once all tokens before it are: then they confirm the draft that follows, or refute it, and what a refuted draft
left behind is taken back.

Where the coda has layers, a token's logits depend on the final states of those before it, so a rule must not decide
by logits: ``decoding.py`` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns

import numpy as np

from ..engines.backend import F32, I64, Lanes
from .draft_control import DraftController
from .loop import DepthLoop
from .policy import Policy
from .sampling import Choose
from .sequence import StageCall, StageCalls, TokenSequence


class Token:
    """A token under way. ``ask`` is its next wish, None once it is finished."""

    __slots__ = ("ask", "entered", "id", "logits", "position", "predicted", "ran", "rows", "state", "wishes")

    def __init__(self, token: int, position: int, wishes: StageCalls, depths: int) -> None:
        self.id, self.position, self.wishes = token, position, wishes
        self.ask: StageCall | None = next(wishes)
        self.entered = False
        """Is it behind the prologue? Before that, old tokens may catch up in its name."""
        self.rows = [0] * depths
        """By depth, the rows that it has in the slots."""
        self.state: F32 = np.empty(0, np.float32)
        """The newest, [1, D]: what its next depth or the coda will see."""
        self.logits: F32 = self.state
        self.ran = 0
        self.predicted = -1
        """The token that its newest logits choose for the position behind it."""

    def send(self, answer: F32) -> None:
        """Give it what it asked for."""
        try:
            self.ask = self.wishes.send(answer)
        except StopIteration as end:
            self.ask, (self.logits, self.ran) = None, end.value
        if self.entered and self.ask is not None and self.ask.stage != "fill":
            self.state = self.ask.rows[-1:]


class PipelinedSequence:
    """Token by token on a DepthLoop, whose tokens are those that are final."""

    def __init__(
        self, loop: DepthLoop, policy: Policy, heads: Mapping[str, F32], draft: Choose, pace: DraftController
    ) -> None:
        """``draft`` chooses from a shallow depth's logits; final ones are the caller's (``DraftController.timed``)."""
        self.loop, self.pace, self.draft = loop, pace, draft
        program = self.program = loop.backend.program
        self.depth = program.depths
        """Depths that the last token ran."""
        self.course = TokenSequence(program, policy, heads, lambda: loop.chunk)
        self._coda = len(program.caches("epilogue")) > 0
        self._flight: list[Token] = []
        self._tokens = np.zeros(loop.capacity + program.depths + 1, np.int64)
        self._lanes: dict[tuple[str, int, int, int], Lanes] = {}

    def begin(self, ids: I64) -> None:
        """The loop has run a prompt under the same policy, and the last of its tokens are ids [S]."""
        self._cancel(0)
        course, loop = self.course, self.loop
        course.restart(loop.cached, loop.filled)
        self._tokens[loop.cached - len(ids) : loop.cached] = ids

    @property
    def _drafting(self) -> bool:
        return self.pace.plan != self.pace.sequential

    def step(self, token: int) -> F32:
        """Run the final ``token`` → its logits [1, V]."""
        begin = perf_counter_ns()
        loop, flight, clock = self.loop, self._flight, self.loop.clock
        position = loop.cached
        if flight and flight[0].id != token:
            self._cancel(0)
        elif flight:
            clock.accepted += 1
        if not flight:
            loop.checked(np.array([token], np.int64))
            self._add(token, position)
        first = flight[0]
        while first.ask is not None:
            self._pass()
        flight.pop(0)
        clock.drafts += bool(flight)
        self.course.cached = loop.cached = position + 1
        loop.filled[:] = [min(n, loop.cached) for n in self.course.filled]
        clock.tokens += 1
        spent = perf_counter_ns() - begin
        clock.total_ns += spent
        (self.pace.took if self._drafting else self.pace.alone)(spent)
        self.pace.token()
        self.depth = first.ran
        return first.logits

    def _add(self, token: int, position: int) -> None:
        self._tokens[position] = token
        wishes = self.course.step(token, position)
        self._flight.append(Token(token, position, wishes, self.program.depths))

    def _cancel(self, first: int) -> None:
        """Drop what is under way from the ``first`` on, as if it had never been."""
        dropped = self._flight[first:]
        if not dropped:
            return
        del self._flight[first:]
        for token in dropped:
            token.wishes.close()
        ran = np.sum([token.rows for token in dropped], axis=0).tolist()
        pending = [token.ask for token in dropped if token.ask is not None]
        self.course.take_back(dropped[0].position, pending, ran)

    def _pass(self) -> None:
        """One step for every token under way, in one block call; then drafts are judged, and a new one is fed."""
        self._feed()
        lanes = []
        for token in self._flight:
            self._until_block(token)
            if token.ask is not None and token.ask.stage == "block":
                lanes.append(token)
        # Lanes of one row ride together, each at a depth of its own. Those with old tokens in front go alone: padding
        # for the others might not fit the cache.
        together = [token for token in lanes if token.ask is not None and len(token.ask.rows) == 1]
        for group in (*([token] for token in lanes if token not in together), together):
            if group:
                self._block(group)
        self._read()
        self.loop.clock.passes += 1

    def _feed(self) -> None:
        """The draft that the newest token predicts, if there is room for one more."""
        newest = self._flight[-1]
        behind = newest.position + 1
        room = len(self._flight) <= self.program.depths and behind < self.loop.capacity
        if self._drafting and room and newest.predicted >= 0:
            self._add(newest.predicted, behind)

    def _until_block(self, token: Token) -> None:
        """What comes before a token's block call: the prologue, K and V that are filled in, old tokens' coda."""
        loop, clock = self.loop, self.loop.clock
        while (ask := token.ask) is not None and (
            ask.stage in ("prologue", "fill") or (ask.stage == "epilogue" and not token.entered)
        ):
            start = perf_counter_ns()
            if ask.stage == "prologue":
                lanes = self._single("prologue", 0, ask)
                answer = token.state = loop.backend.prologue(ask.rows[None], lanes, loop.cache)[0].copy()
                token.entered = True
            elif ask.stage == "fill":
                loop.backend.fill(ask.rows[None], self._single("block", ask.depth, ask), loop.cache)
                answer = ask.rows[:0]
            else:
                answer = self._epilogue([(ask.positions[0].item(), ask.rows)])
            clock.engine_ns += perf_counter_ns() - start
            token.send(answer)

    def _block(self, group: list[Token]) -> None:
        """One call for ``group``, with as many rows each at a depth of its own, and the answers, oldest token first."""
        asks = [token.ask for token in group if token.ask is not None]
        low, high = min(ask.depth for ask in asks), max(ask.depth for ask in asks)
        n = len(asks[0].rows)
        lanes = self._ready("block", low, high - low + 1, n)
        state = np.zeros((high - low + 1, n, self.program.width), np.float32)
        lanes.tokens.fill(0)
        lanes.cached.fill(1)  # of idle ones: the operator wants to have something to see
        for ask in asks:
            lane = ask.depth - low
            lanes.cached[lane], lanes.tokens[lane] = ask.cached, n
            lanes.positions[lane], state[lane] = ask.positions, ask.rows
        lanes.refresh()
        clock = self.loop.clock
        start = perf_counter_ns()
        out = self.loop.backend.block(state, lanes, self.loop.cache).copy()
        spent = perf_counter_ns() - start
        clock.engine_ns += spent
        clock.block_calls += 1
        for token, ask in zip(group, asks, strict=True):
            clock.block_ns[ask.depth] += spent // len(asks)
            clock.calls[ask.depth] += 1
            clock.rows += n
            token.rows[ask.depth] += n
            found = out[ask.depth - low]
            if token.entered:
                token.state = found[-1:]
            token.send(found)

    def _read(self) -> None:
        """Read out every token under way, answer those whose logits are final, and judge the drafts."""
        flight = [token for token in self._flight if token.entered]
        if not flight:
            return
        reads = [self._rows(token) for token in flight]
        start = perf_counter_ns()
        found = self._epilogue(reads)
        self.loop.clock.engine_ns += perf_counter_ns() - start
        final = True
        for token, logits in zip(flight, found, strict=True):
            if token.ask is not None and token.ask.stage == "epilogue" and (final or not self._coda):
                token.send(logits[None])
            final = final and token.ask is None
        for i, token in enumerate(flight):
            before = self._tokens[: token.position + 1]
            token.predicted = self.draft(found[i], before, token.position + 1)
            if i + 1 < len(self._flight) and self._flight[i + 1].id != token.predicted:
                self.loop.clock.drafts += i == 0 and token.ask is None  # refuted by what is final
                self._cancel(i + 1)
                break

    def _rows(self, token: Token) -> tuple[int, F32]:
        """(position, states [n, D]) that the epilogue takes for a token: what it asks for, or its newest state."""
        ask = token.ask
        if self._coda and ask is not None and ask.stage == "epilogue":
            return ask.positions[0].item(), ask.rows
        return token.position, token.state

    def _epilogue(self, reads: list[tuple[int, F32]]) -> F32:
        """Neighbouring tokens as one lane, oldest first → logits [N, V] of the last row of each."""
        rows = np.concatenate([state for _, state in reads])
        lanes = self._ready("epilogue", self.program.depths - 1, 1, len(rows))
        first = reads[0][0]
        lanes.cached[0], lanes.tokens[0] = first, len(rows)
        lanes.positions[0] = np.arange(first, first + len(rows))
        lanes.refresh()
        ends = np.cumsum([len(state) for _, state in reads]) - 1
        return self.loop.backend.epilogue(rows[None], ends, lanes, self.loop.cache).copy()

    def _single(self, stage: str, depth: int, ask: StageCall) -> Lanes:
        lanes = self._ready(stage, depth, 1, len(ask.rows))
        lanes.cached[0], lanes.tokens[0], lanes.positions[0] = ask.cached, len(ask.rows), ask.positions
        lanes.refresh()
        return lanes

    def _ready(self, stage: str, depth: int, count: int, tokens: int) -> Lanes:
        """Lanes of that shape from ``depth`` on, made once."""
        key = (stage, depth, count, tokens)
        lanes = self._lanes.get(key)
        if lanes is None:
            lanes = self._lanes[key] = Lanes(
                np.arange(depth, depth + count),
                np.zeros(count, np.int32),
                np.zeros(count, np.int32),
                np.zeros((count, tokens), np.int64),
                self.loop.cache.slot(stage, self.loop.sequence, depth),
            )
        return lanes
