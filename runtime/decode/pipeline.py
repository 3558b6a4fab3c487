"""Decoding with drafts: a token's later depths and the next tokens' earlier ones share one read of the block.

Each token under way is a ``TokenSequence.step``, a generator of stage calls, whatever the exit rule, the router or the
KV layout. A pass makes one block call with a lane for each of them, and reads out some. What a shallow depth predicts
is fed at once as a draft. A token that is final confirms the draft behind it or refutes it, and a refuted draft is
taken back with all that follow it, by lengths alone.

A token that is final saw only final ones: the rows before its own in a depth's slot are those of the tokens before
it, and layers after the loop take the tokens under way as one lane, oldest first, and answer them in that order.
"""

from __future__ import annotations

from time import perf_counter_ns

import numpy as np

from ..engines.backend import F32, I64
from ..errors import UsageError
from .draft_control import DraftController
from .pass_layout import PassLayouts, ReadLayout
from .sampling import Choose
from .sequential import SequentialDecoder
from .skipped_kv import copy_to_deeper
from .stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, StageCall, StageCalls

NONE = -1
"""No draft."""
ENTERS, ENTERED = -2, -1
"""Depths of a token before its prologue call and after it."""
NOTHING = np.empty(0, np.float32)


class TokenInFlight:
    """A token between its prologue and its last stage call."""

    __slots__ = (
        "asks", "call", "depth", "fresh", "id", "logits", "position", "predicted", "ran", "state", "steps"
    )  # fmt: skip

    def __init__(self, token: int, position: int, steps: StageCalls) -> None:
        self.id, self.position, self.steps = token, position, steps
        self.call: StageCall | None = next(steps)
        """What it needs next; None once it is done."""
        self.depth = ENTERS
        """The last depth that it ran."""
        self.asks = self.fresh = False
        """Does it need its own logits next? Did it run a depth in this pass?"""
        self.state: F32 = NOTHING
        """What the epilogue would take: its newest state [1, D], or [n, D] with older ones in front."""
        self.predicted: list[tuple[int, int]] = []
        """(depth, the token that its state there predicted for the next position)."""
        self.logits: F32 = NOTHING
        self.ran = 0
        """Once it is done: logits [1, V], and the depths that it ran."""

    def send(self, answer: F32) -> None:
        """Give it the result of its call; it says what it needs next, or is done."""
        self.asks = False
        try:
            call = self.call = self.steps.send(answer)
        except StopIteration as end:
            self.call, (self.logits, self.ran) = None, end.value
            return
        if self.depth == ENTERS:  # older tokens catch up in its name
            return
        if call.stage == BLOCK:
            self.state = call.rows if len(call.rows) == 1 else call.rows[-1:]
        elif call.stage == EPILOGUE:
            self.state, self.asks = call.rows, True


class Pipeline:
    """Decodes token by token with drafts, on the sequence of a SequentialDecoder.

    That one runs prompts. Before it does anything while drafts are under way, ``cancel`` takes them back; ``begin``
    says that it has run a prompt.
    """

    def __init__(self, loop: SequentialDecoder, draft: Choose, controller: DraftController) -> None:
        """``draft`` chooses from the logits of tokens that are not final; the caller chooses from final ones
        (``DraftController.timed``)."""
        self.loop, self.controller, self.draft = loop, controller, draft
        program = loop.backend.program
        self.depth = program.depths
        """Depths that the last token ran."""
        self.sequence = loop.sequence
        self._depths = program.depths
        self._shared = program.shares_kv
        self._coda = len(program.caches("epilogue")) > 0
        self._flight: list[TokenInFlight] = []
        self._last: TokenInFlight | None = None
        self._reads: list[tuple[TokenInFlight, int]] = []  # and the row of the logits
        self._logits: F32 | None = None
        self._tokens = np.zeros(loop.capacity + program.depths + 1, np.int64)
        self._layouts = PassLayouts(loop.cache, loop.cache_sequence, program.depths, program.width)
        self._picks: dict[tuple[int, ...], I64] = {}

    def begin(self, ids: I64) -> None:
        """The loop has run a prompt under the same policy, and the last of its tokens are ids [S]."""
        loop = self.loop
        if (
            self.sequence is not loop.sequence
        ):  # it began from empty: what is under way belongs to the one before
            self._flight.clear()
            self.sequence = loop.sequence
        if self._flight:
            raise UsageError("a prompt was run while drafts were under way; cancel them first")
        self._last, self._reads = None, []
        self._tokens[loop.cached - len(ids) : loop.cached] = ids

    def cancel(self) -> None:
        """Take back all drafts, so that the decoder holds the final tokens only."""
        self._cancel(0)
        self._last, self._reads = None, []

    def step(self, token: int) -> F32:
        """Run the final ``token`` → its logits [1, V], valid until the next call; ``depth`` says how deep it went."""
        begin = perf_counter_ns()
        loop, flight, sequence = self.loop, self._flight, self.sequence
        clock, controller = loop.clock, self.controller
        position = sequence.cached
        confirmed = bool(flight) and flight[0].id == token
        self._settle(token, confirmed)
        if not confirmed:
            self._cancel(0)
            alone = controller.plan.depth == self._depths - 1 or not self._can_take_back(position)
            if alone:
                return self._alone(token, begin)
            loop.checked(np.array([token], np.int64))
            self._add(token, position)
        first = flight[0]
        since = begin
        while first.call is not None:
            since = self._pass(since)
        del flight[0]
        self._last = first
        sequence.cached = position + 1
        clock.tokens += 1
        spent = perf_counter_ns() - begin
        clock.total_ns += spent
        controller.took(spent)
        controller.token()
        self.depth = first.ran
        return first.logits

    def _alone(self, token: int, begin: int) -> F32:
        """Decode one token sequentially."""
        loop = self.loop
        logits = loop.step(token)
        self._tokens[loop.cached - 1] = token
        self._last, self.depth = None, loop.depth
        self.controller.alone(perf_counter_ns() - begin)
        self.controller.token()
        return logits

    def _add(self, token: int, position: int) -> None:
        self._tokens[position] = token
        self._flight.append(TokenInFlight(token, position, self.sequence.step(token, position)))

    def _settle(self, token: int, confirmed: bool) -> None:
        """Count which depths predicted the final ``token``, and whether it had been fed."""
        if self._last is not None:
            for depth, predicted in self._last.predicted:
                self.controller.saw(depth, predicted == token)
        self.loop.clock.drafts += bool(self._flight)
        self.loop.clock.accepted += confirmed

    def _can_take_back(self, position: int) -> bool:
        """Can a token at ``position`` be forgotten again? Not where its rows would move a sliding window."""
        cache, layout = self.loop.cache, self.sequence.layout
        if not cache.can_truncate(position + 1, position):
            return False
        if cache.window is None:
            return True
        # Slots get rows of the tokens under way as well, and of those that wait.
        more = len(self._flight) + 1
        return all(cache.can_truncate(n + more if layout.held else position + 1, n) for n in layout.filled)

    def _cancel(self, first: int) -> None:
        """Take back what is under way from the ``first`` on, as if it had never been."""
        dropped = self._flight[first:]
        if not dropped:
            return
        del self._flight[first:]
        for token in dropped:
            token.steps.close()
        pending = [token.call for token in dropped if token.call is not None]
        self.sequence.take_back(dropped[0].position, pending)

    def _judge(self) -> int:
        """Compare the newest predictions with what was fed → the next draft, or NONE.

        From the oldest token on, the first that differs replaces what was fed and all behind it; if none differs, the
        newest token's prediction is the draft.
        """
        flight, reads = self._flight, self._reads
        if not reads or self._logits is None:
            return NONE
        oldest = flight[0].position
        for token, row in reads:
            index = token.position - oldest
            if not 0 <= index < len(flight) or flight[index] is not token:
                continue
            after = token.position + 1
            predicted = self.draft(self._logits[row], self._tokens[:after], after)
            token.predicted.append((token.depth, predicted))
            if index + 1 < len(flight):
                if flight[index + 1].id == predicted:
                    continue
                self._cancel(index + 1)
            return predicted if self._may_draft(after) else NONE
        return NONE

    def _may_draft(self, position: int) -> bool:
        """May a token be fed at ``position``, which may have to be taken back?"""
        return (
            self.controller.plan.depth < self._depths - 1
            and position < self.loop.capacity
            and len(self._flight) <= self._depths
            and not self.sequence.skipped.overdue  # older tokens catch up when no draft is under way
            and self._can_take_back(position)
        )

    def _pass(self, since: int) -> int:
        """Run one depth for every token under way, in one block call, after a new draft → the time at its end.

        ``since``: when the work of this pass began. Both as ``perf_counter_ns``.
        """
        draft, flight, clock = self._judge(), self._flight, self.loop.clock
        if draft != NONE:
            self._add(draft, flight[-1].position + 1)
        riders: list[TokenInFlight] = []
        block_ns = 0
        for token in flight:
            call = token.call
            if call is not None and call.stage != BLOCK and not token.asks:
                call = self._before_block(token)
            token.fresh = call is not None and not token.asks
            if call is not None and token.fresh:
                if len(call.rows) == 1:
                    riders.append(token)
                else:  # older tokens in front: padding for the others might not fit the cache
                    block_ns += self._block_alone(token, call)
        if riders:
            block_ns += self._block_shared(riders) if self._shared else self._block(riders)
        rows, read_ns = self._read()
        clock.passes += 1
        end = perf_counter_ns()
        if riders and not self.sequence.rule.lets_go:  # else what a pass costs says little of a token
            count = riders[0].depth - riders[-1].depth + 1
            self.controller.passed(count, block_ns, rows, read_ns, end - since)
        return end

    def _before_block(self, token: TokenInFlight) -> StageCall | None:
        """Run what comes before a token's block call: the prologue, fills, the epilogue of old tokens."""
        backend, cache, clock = self.loop.backend, self.loop.cache, self.loop.clock
        while (call := token.call) is not None and call.stage != BLOCK and not token.asks:
            start = perf_counter_ns()
            if call.stage == PROLOGUE:
                lanes = self._layouts.single("prologue", 0, call.cached, call.positions)
                answer = token.state = backend.prologue(call.rows[None], lanes, cache)[0].copy()
                token.depth = ENTERED
            elif call.stage == FILL:
                lanes = self._layouts.single("block", call.depth, call.cached, call.positions)
                backend.fill(call.rows[None], lanes, cache)
                answer = call.rows[:0]
            else:
                lanes = self._layouts.single("epilogue", call.depth, call.cached, call.positions)
                answer = backend.epilogue(
                    call.rows[None], np.array([len(call.rows) - 1]), lanes, cache
                ).copy()
            clock.engine_ns += perf_counter_ns() - start
            self._send(token, answer)
        return call

    def _send(self, token: TokenInFlight, answer: F32) -> None:
        """Give a token its answer, and copy rows at once if that is what it needs next."""
        token.send(answer)
        while (call := token.call) is not None and call.stage == COPY:
            copy_to_deeper(call, self.loop.cache, self.loop.cache_sequence, self._depths)
            token.send(call.rows)

    def _block(self, riders: list[TokenInFlight]) -> int:
        """One call for tokens of one row, each at a depth of its own → nanoseconds inside the engine."""
        calls = [token.call for token in riders if token.call is not None]
        layout = self._layouts.block(tuple([call.depth for call in calls]))
        lanes, states, places = layout.lanes, layout.states, layout.places
        cached, positions = lanes.cached, lanes.positions
        for place, call in zip(places, calls, strict=True):
            cached[place] = call.cached
            positions[place, 0] = call.positions[0]
            states[place] = call.rows
        lanes.refresh()
        start = perf_counter_ns()
        out = self.loop.backend.block(states, lanes, self.loop.cache)
        spent = perf_counter_ns() - start
        self._count(calls, spent)
        out = out.copy()  # the next call writes there, and a token may keep its state for longer
        for token, place in zip(riders, places, strict=True):
            self._answer(token, out[place])
        return spent

    def _block_alone(self, token: TokenInFlight, call: StageCall) -> int:
        """A call for a token with older ones in front → nanoseconds inside the engine."""
        lanes = self._layouts.single("block", call.depth, call.cached, call.positions)
        start = perf_counter_ns()
        out = self.loop.backend.block(call.rows[None], lanes, self.loop.cache)
        spent = perf_counter_ns() - start
        self._count([call], spent)
        self._answer(token, out[0].copy())
        return spent

    def _block_shared(self, riders: list[TokenInFlight]) -> int:
        """As ``_block`` where depths share a slot: depth 0 writes it, the deeper tokens read it as one lane.

        Deeper than depth 0 nothing is written, so those between them that are done ride along for nothing.
        """
        flight, spent = self._flight, 0
        deep = [token for token in riders if token.call is not None and token.call.depth > 0]
        if deep:
            oldest = deep[0].position
            lane = flight[oldest - flight[0].position : deep[-1].position - flight[0].position + 1]
            states = np.stack([token.state[-1] for token in lane])[None]
            lanes = self._layouts.single("block", 1, oldest, np.arange(oldest, oldest + len(lane)))
            start = perf_counter_ns()
            out = self.loop.backend.block(states, lanes, self.loop.cache)
            spent = perf_counter_ns() - start
            self._count([token.call for token in deep if token.call is not None], spent)
            out = out[0].copy()
            for token in deep:
                at = token.position - oldest
                self._answer(token, out[at : at + 1])
        if len(deep) < len(riders):
            newest = riders[-1]
            assert newest.call is not None
            spent += self._block_alone(newest, newest.call)
        return spent

    def _count(self, calls: list[StageCall], spent: int) -> None:
        clock = self.loop.clock
        clock.engine_ns += spent
        clock.block_calls += 1
        share = spent // len(calls)
        for call in calls:
            clock.block_ns[call.depth] += share
            clock.calls[call.depth] += 1
            clock.rows += len(call.rows)

    def _answer(self, token: TokenInFlight, states: F32) -> None:
        """Give a token its states [n, D] after a depth."""
        assert token.call is not None
        if token.depth >= ENTERED:
            token.depth, token.state = token.call.depth, states if len(states) == 1 else states[-1:]
        self._send(token, states)

    def _read(self) -> tuple[int, int]:
        """Read out those that ask and those whose predictions the plan uses → rows, nanoseconds in the engine."""
        plan, flight, coda = self.controller.plan, self._flight, self._coda
        k, judge = plan.depth, plan.judge
        reads: list[TokenInFlight] = []
        runs_before = False  # does a token before need more than its logits?
        for token in flight:
            if (token.asks and not (coda and runs_before)) or (
                token.fresh and (token.depth == k or (judge and token.depth > k))
            ):
                reads.append(token)
            runs_before = runs_before or not (token.asks or token.call is None)
        self._reads = []
        if not reads:
            return 0, 0
        lane = flight[: reads[-1].position - flight[0].position + 1] if coda else reads
        layout, picks = self._lay_out(lane, reads)
        start = perf_counter_ns()
        logits = self._logits = self.loop.backend.epilogue(
            layout.states, picks, layout.lanes, self.loop.cache
        )
        spent = perf_counter_ns() - start
        self.loop.clock.engine_ns += spent
        oldest, row = flight[0], 0
        runs_before = False
        for token in lane:
            if token in reads:
                if token.asks and not (coda and runs_before):
                    own = logits[row : row + 1]
                    lent = token is oldest and not self.sequence.rule.reads_logits
                    self._send(token, own if lent else own.copy())
                if token.call is not None or token is not oldest:
                    self._reads.append((token, row))
                row += 1
            runs_before = runs_before or token.call is not None
        return row, spent

    def _lay_out(self, lane: list[TokenInFlight], reads: list[TokenInFlight]) -> tuple[ReadLayout, I64]:
        """The epilogue's input with the states of ``lane``, oldest first, and the last row of each of ``reads``."""
        if not self._coda:
            layout = self._layouts.read(len(lane))
            for row, token in enumerate(lane):
                layout.states[0, row] = token.state
            return layout, layout.steps
        layout = self._layouts.read(sum([len(token.state) for token in lane]))
        lanes, states = layout.lanes, layout.states
        first = lane[0].position + 1 - len(lane[0].state)
        lanes.cached[0] = first
        np.add(layout.steps, first, out=lanes.positions[0])
        lanes.refresh()
        at, ends = 0, []
        for token in lane:
            n = len(token.state)
            states[0, at : at + n] = token.state
            at += n
            if token in reads:
                ends.append(at - 1)
        key = tuple(ends)
        picks = self._picks.get(key)
        if picks is None:
            picks = self._picks[key] = np.array(ends)
        return layout, picks
