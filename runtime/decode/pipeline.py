"""The driver with drafts: a token's deeper depths and the next tokens' shallower ones share one read of the block.

Each token in flight is a ``TokenSequence.step``, a generator of stage calls, whatever the exit rule, the router, the KV
layout and the policy for skipped K and V. A pass makes one block call with a lane for each of them, and reads out some
of them. The token that a shallow depth predicts is fed at once, as a draft. A token that is final confirms the draft
behind it or refutes it, and a refuted draft is taken back with all that follow it: only lengths change.

Final tokens depend on final tokens only: the rows before a token's own in a depth's slot are those of the tokens before
it; and layers after the loop that keep K and V take the tokens in flight as one lane, oldest first, and answer a token
only once all before it are final.
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
BEFORE_PROLOGUE, AFTER_PROLOGUE = -2, -1
"""``TokenInFlight.depth`` of a token that has not run depth 0."""
_NOTHING = np.empty(0, np.float32)


class TokenInFlight:
    """A token whose stage calls have begun, until it is final. ``calls`` is its ``TokenSequence.step``."""

    __slots__ = (
        "asks_logits", "call", "calls", "depth", "id", "logits", "position", "predicted", "ran", "ran_now", "state"
    )  # fmt: skip

    def __init__(self, token: int, position: int, calls: StageCalls) -> None:
        self.id, self.position, self.calls = token, position, calls
        self.call: StageCall | None = next(calls)
        """Its next stage call; None once it has none left."""
        self.depth = BEFORE_PROLOGUE
        """The last depth that it ran. Before its prologue its calls are of older tokens, which catch up."""
        self.asks_logits = False
        """Is its next call the epilogue, of its own state?"""
        self.ran_now = False
        """Did it run a depth in this pass?"""
        self.state = _NOTHING
        """The epilogue's input for it: its newest state [1, D], or [n, D] with those of older tokens in front."""
        self.predicted: list[tuple[int, int]] = []
        """(depth, token): what its state after that depth predicted for the next position."""
        self.logits = _NOTHING
        """Once it has no calls left: logits [1, V]."""
        self.ran = 0
        """Once it has no calls left: the depths that it ran."""


class Pipeline:
    """Decodes token by token with drafts, on the sequence of a SequentialDecoder, which runs the prompts.

    ``cancel`` has to be called before the decoder is used while drafts are in flight, ``begin`` after each prompt.
    """

    def __init__(self, decoder: SequentialDecoder, draft: Choose, controller: DraftController) -> None:
        """``draft`` chooses from logits of tokens that are not final. The caller chooses from final ones, with
        ``DraftController.timed``."""
        self.decoder, self.controller, self.draft = decoder, controller, draft
        program = decoder.backend.program
        self.depth = program.depths
        """Depths that the last token ran."""
        self.sequence = decoder.sequence
        self._depths = program.depths
        self._shares_kv = program.shares_kv
        block, *others = program.loop.blocks
        self._depths_alike = not others and not program.differs(block)
        self._in_order = (
            len(program.caches("epilogue")) > 0
        )  # logits depend on the final states of older tokens
        self._flight: list[TokenInFlight] = []  # at neighbouring positions, the oldest first
        self._last: TokenInFlight | None = None  # the newest final token
        self._reads: list[
            tuple[TokenInFlight, int]
        ] = []  # tokens that the last pass read out, rows of ``_logits``
        self._logits = _NOTHING
        self._ids = np.zeros(decoder.capacity + program.depths + 1, np.int64)
        self._layouts = PassLayouts(decoder.cache, decoder.cache_sequence, program.depths, program.width)

    def begin(self, ids: I64) -> None:
        """Decode behind a prompt that the decoder has run, whose last tokens are ids [S]."""
        decoder = self.decoder
        if (
            self.sequence is not decoder.sequence
        ):  # it started from empty, so drafts of the old sequence are void
            self._flight.clear()
            self.sequence = decoder.sequence
        if self._flight:
            raise UsageError("a prompt was run while drafts were in flight; cancel them first")
        self._last, self._reads = None, []
        self._ids[decoder.cached - len(ids) : decoder.cached] = ids

    def cancel(self) -> None:
        """Take back all drafts, so that the decoder's sequence holds final tokens only."""
        self._take_back(0)
        self._last, self._reads = None, []

    def step(self, token: int) -> F32:
        """Run the final ``token`` → its logits [1, V], valid until the next call; ``depth``: the depths that it ran."""
        begin = since = perf_counter_ns()
        decoder, flight, sequence = self.decoder, self._flight, self.sequence
        clock, controller = decoder.clock, self.controller
        position = sequence.cached
        confirmed = bool(flight) and flight[0].id == token
        self._count_prediction(token, confirmed)
        if not confirmed:
            self._take_back(0)
            if controller.plan.depth == self._depths - 1 or not self._can_take_back(position):
                return self._step_alone(token, begin)
            if position >= decoder.capacity:
                decoder.checked(np.array([token], np.int64))
            self._feed(token, position)
        first = flight[0]
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

    def _step_alone(self, token: int, begin: int) -> F32:
        """Run a token sequentially: the plan drafts nothing, or its rows move a sliding window."""
        decoder = self.decoder
        logits = decoder.step(token)
        self._ids[decoder.cached - 1] = token
        self._last, self.depth = None, decoder.depth
        self.controller.alone(perf_counter_ns() - begin)
        self.controller.token()
        return logits

    def _feed(self, token: int, position: int) -> None:
        self._ids[position] = token
        self._flight.append(TokenInFlight(token, position, self.sequence.step(token, position)))

    def _count_prediction(self, token: int, confirmed: bool) -> None:
        """Count which depths predicted the final ``token``, and whether it had been fed as a draft."""
        if self._last is not None:
            for depth, predicted in self._last.predicted:
                self.controller.saw(depth, predicted == token)
        if self._flight:
            clock = self.decoder.clock
            clock.drafts += 1
            clock.accepted += confirmed

    def _can_take_back(self, position: int) -> bool:
        """Return whether a token at ``position`` can be forgotten again: not where its rows move a sliding window."""
        cache, layout = self.decoder.cache, self.sequence.layout
        if not cache.can_truncate(position + 1, position):
            return False
        if cache.window is None:
            return True
        # Slots get rows of the other tokens in flight as well, and of those that wait.
        more = len(self._flight) + 1
        return all(cache.can_truncate(n + more if layout.held else position + 1, n) for n in layout.filled)

    def _take_back(self, first: int) -> None:
        """Forget the tokens in flight from the ``first`` on."""
        dropped = self._flight[first:]
        if not dropped:
            return
        del self._flight[first:]
        for token in dropped:
            token.calls.close()
        pending = [token.call for token in dropped if token.call is not None]
        self.sequence.take_back(dropped[0].position, pending)

    def _next_draft(self) -> int:
        """Compare the last pass's predictions with what was fed → the token to feed behind them, or NONE.

        From the oldest token on, the first prediction that differs from the draft at its position replaces that draft
        and all behind it. If none differs, the newest token's prediction is the next draft.
        """
        flight = self._flight
        oldest = flight[0].position
        for token, row in self._reads:
            index = token.position - oldest
            if not 0 <= index < len(flight) or flight[index] is not token:  # final meanwhile, or taken back
                continue
            after = token.position + 1
            predicted = self.draft(self._logits[row], self._ids[:after], after)
            token.predicted.append((token.depth, predicted))
            if index + 1 < len(flight):
                if flight[index + 1].id == predicted:
                    continue
                self._take_back(index + 1)
            return predicted if self._may_draft(after) else NONE
        return NONE

    def _may_draft(self, position: int) -> bool:
        """Return whether the plan drafts, and a draft at ``position`` has room and can be taken back."""
        sequence = self.sequence
        return (
            self.controller.plan.depth < self._depths - 1
            and position < self.decoder.capacity
            and len(self._flight) <= self._depths
            and not (
                sequence.rule.lets_go and sequence.skipped.overdue
            )  # they catch up when nothing is in flight
            and self._can_take_back(position)
        )

    def _pass(self, since: int) -> int:
        """Run one depth for every token in flight, in one block call, after the next draft → the time at its end.

        ``since``: when the work of this pass began. Both as ``perf_counter_ns``.
        """
        flight = self._flight
        if self._reads:
            draft = self._next_draft()
            if draft != NONE:
                self._feed(draft, flight[-1].position + 1)
        single: list[TokenInFlight] = []
        block_ns = 0
        for token in flight:
            call = token.call
            if call is not None and call.stage != BLOCK and not token.asks_logits:
                call = self._until_block(token)
            token.ran_now = False
            if call is not None and call.stage == BLOCK:
                token.ran_now = True
                if len(call.rows) == 1:
                    single.append(token)
                else:  # older tokens run along; padding the other lanes to that length might not fit the cache
                    block_ns += self._block_alone(token, call)
        if single:
            block_ns += self._block_shared(single) if self._shares_kv else self._block(single)
        rows, read_ns = self._read()
        self.decoder.clock.passes += 1
        end = perf_counter_ns()
        if (
            single and not self.sequence.rule.lets_go
        ):  # else a token's cost does not follow from that of passes
            lanes = single[0].depth - single[-1].depth + 1
            self.controller.passed(lanes, block_ns, rows, read_ns, end - since)
        return end

    def _send(self, token: TokenInFlight, answer: F32) -> None:
        """Send a token the answer of its call, and note the next one. Rows are copied at once."""
        token.asks_logits = False
        try:
            call = token.calls.send(answer)
            while call.stage == COPY:
                copy_to_deeper(call, self.decoder.cache, self.decoder.cache_sequence, self._depths)
                call = token.calls.send(call.rows)
        except StopIteration as end:
            token.call, (token.logits, token.ran) = None, end.value
            return
        token.call = call
        if token.depth == BEFORE_PROLOGUE:
            return
        if call.stage == BLOCK:
            token.state = call.rows if len(call.rows) == 1 else call.rows[-1:]
        elif call.stage == EPILOGUE:
            token.state, token.asks_logits = call.rows, True

    def _until_block(self, token: TokenInFlight) -> StageCall | None:
        """Run a token's calls before its block call: its prologue, fills, and the epilogue of older tokens."""
        backend, cache, clock = self.decoder.backend, self.decoder.cache, self.decoder.clock
        while (call := token.call) is not None and call.stage != BLOCK and not token.asks_logits:
            start = perf_counter_ns()
            if call.stage == PROLOGUE:
                lanes = self._layouts.single("prologue", 0, call.cached, call.positions)
                answer = token.state = backend.prologue(call.rows[None], lanes, cache)[0].copy()
                token.depth = AFTER_PROLOGUE
            elif call.stage == FILL:
                lanes = self._layouts.single("block", call.depth, call.cached, call.positions)
                backend.fill(call.rows[None], lanes, cache)
                answer = call.rows[:0]
            else:
                lanes = self._layouts.single("epilogue", call.depth, call.cached, call.positions)
                last = np.array([len(call.rows) - 1])
                answer = backend.epilogue(call.rows[None], last, lanes, cache).copy()
            clock.engine_ns += perf_counter_ns() - start
            self._send(token, answer)
        return call

    def _block(self, tokens: list[TokenInFlight]) -> int:
        """Make one block call for tokens of one row, each at a depth of its own → nanoseconds in the engine."""
        calls = [token.call for token in tokens if token.call is not None]
        layout = self._layouts.block(tuple([call.depth for call in calls]))
        lanes, states, places = layout.lanes, layout.states, layout.places
        cached, positions = lanes.cached, lanes.positions
        for place, call in zip(places, calls, strict=True):
            cached[place] = call.cached
            positions[place, 0] = call.positions[0]
            states[place] = call.rows
        lanes.refresh()
        start = perf_counter_ns()
        out = self.decoder.backend.block(states, lanes, self.decoder.cache)
        spent = perf_counter_ns() - start
        self._count_calls(calls, spent, len(calls))
        out = out.copy()  # the engine writes there again, and a token may keep its state for longer
        for token, call, place in zip(tokens, calls, places, strict=True):
            state = out[place]
            if token.depth != BEFORE_PROLOGUE:
                token.depth, token.state = call.depth, state
            self._send(token, state)
        return spent

    def _block_alone(self, token: TokenInFlight, call: StageCall) -> int:
        """Make a block call for one token, with the older ones that run along → nanoseconds in the engine."""
        lanes = self._layouts.single("block", call.depth, call.cached, call.positions)
        start = perf_counter_ns()
        out = self.decoder.backend.block(call.rows[None], lanes, self.decoder.cache)
        spent = perf_counter_ns() - start
        self._count_calls([call], spent, len(call.rows))
        states = out[0].copy()
        if token.depth != BEFORE_PROLOGUE:
            token.depth, token.state = call.depth, states[-1:]
        self._send(token, states)
        return spent

    def _block_shared(self, tokens: list[TokenInFlight]) -> int:
        """Do what ``_block`` does where depths share a slot: depth 0 writes it; deeper tokens, as one lane, read it.

        The lane holds neighbours. Tokens in flight between the deeper ones, such as those that left early, run along;
        that writes nothing, and their results are dropped. Where depths have norms, deltas or blocks of their own every
        token has a call to itself.
        """
        flight, spent = self._flight, 0
        deep = [token for token in tokens if token.call is not None and token.call.depth > 0]
        if not self._depths_alike:
            spent = sum(self._block_alone(token, token.call) for token in deep if token.call is not None)
        elif deep:
            oldest = deep[0].position
            lane = flight[oldest - flight[0].position : deep[-1].position - flight[0].position + 1]
            states = np.stack([token.state[-1] for token in lane])[None]
            lanes = self._layouts.single("block", 1, oldest, np.arange(oldest, oldest + len(lane)))
            start = perf_counter_ns()
            out = self.decoder.backend.block(states, lanes, self.decoder.cache)
            spent = perf_counter_ns() - start
            calls = [token.call for token in deep if token.call is not None]
            self._count_calls(calls, spent, len(calls))
            out = out[0].copy()
            for token, call in zip(deep, calls, strict=True):
                row = token.position - oldest
                state = out[row : row + 1]
                token.depth, token.state = call.depth, state
                self._send(token, state)
        newest = tokens[-1]
        if len(deep) < len(tokens) and newest.call is not None:
            spent += self._block_alone(newest, newest.call)
        return spent

    def _count_calls(self, calls: list[StageCall], spent: int, rows: int) -> None:
        """Count one engine call that ran ``calls``."""
        clock = self.decoder.clock
        clock.engine_ns += spent
        clock.block_calls += 1
        clock.rows += rows
        share = spent // len(calls)
        block_ns, made = clock.block_ns, clock.calls
        for call in calls:
            block_ns[call.depth] += share
            made[call.depth] += 1

    def _read(self) -> tuple[int, int]:
        """Read out tokens that ask for logits, and those whose predictions the plan uses → rows, engine nanoseconds.

        Where logits depend on older tokens' final states, a token that asks is answered once all before it are final.
        """
        plan, flight, in_order = self.controller.plan, self._flight, self._in_order
        draft_depth, judge = plan.depth, plan.judge
        reads: list[TokenInFlight] = []
        older_run = False  # has an older token block calls to come?
        for token in flight:
            if (token.asks_logits and not (in_order and older_run)) or (
                token.ran_now and (token.depth == draft_depth or (judge and token.depth > draft_depth))
            ):
                reads.append(token)
            older_run = older_run or not (token.asks_logits or token.call is None)
        self._reads = []
        if not reads:
            return 0, 0
        lane = flight[: reads[-1].position - flight[0].position + 1] if in_order else reads
        layout, picks = self._lay_out(lane, reads)
        start = perf_counter_ns()
        logits = self.decoder.backend.epilogue(layout.states, picks, layout.lanes, self.decoder.cache)
        spent = perf_counter_ns() - start
        self.decoder.clock.engine_ns += spent
        self._logits = logits
        oldest, row = flight[0], 0
        older_run = False
        for token in lane:
            if token in reads:
                if token.asks_logits and not (in_order and older_run):
                    own = logits[row : row + 1]
                    lent = token is oldest and not self.sequence.rule.reads_logits
                    self._send(token, own if lent else own.copy())
                if token.call is not None or token is not oldest:
                    self._reads.append((token, row))
                row += 1
            older_run = older_run or token.call is not None
        return row, spent

    def _lay_out(self, lane: list[TokenInFlight], reads: list[TokenInFlight]) -> tuple[ReadLayout, I64]:
        """Write the states of ``lane`` into the epilogue's input → its arrays, the last row of each of ``reads``."""
        if not self._in_order:
            layout = self._layouts.read(len(lane))
            for row, token in enumerate(lane):
                layout.states[0, row] = token.state
            return layout, layout.rows
        layout = self._layouts.read(sum([len(token.state) for token in lane]))
        lanes, states = layout.lanes, layout.states
        first = lane[0].position + 1 - len(lane[0].state)
        lanes.cached[0] = first
        np.add(layout.rows, first, out=lanes.positions[0])
        lanes.refresh()
        start, ends = 0, []
        for token in lane:
            end = start + len(token.state)
            states[0, start:end] = token.state
            if token in reads:
                ends.append(end - 1)
            start = end
        return layout, layout.picks(tuple(ends))
