"""One pass of the driver with drafts: the engine calls that bring every token in flight one depth further.

What is fed, confirmed and taken back is ``pipeline.py``'s.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import NamedTuple

import numpy as np

from ..engines.backend import F32, I64
from .draft_control import DraftPlan
from .pass_layout import PassLayouts, ReadLayout
from .sequential import SequentialDecoder
from .skipped_kv import copy_to_deeper
from .stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, StageCall, StageCalls

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
        """Whether its next call is the epilogue, of its own state."""
        self.ran_now = False
        """Whether it ran a depth in this pass."""
        self.state = _NOTHING
        """The epilogue's input for it: its newest state [1, D], or [n, D] with those of older tokens in front."""
        self.predicted: list[tuple[int, int]] = []
        """(depth, token): what its state after that depth predicted for the next position."""
        self.logits = _NOTHING
        """Once it has no calls left: logits [1, V]."""
        self.ran = 0
        """Once it has no calls left: the depths that it ran."""


class Reads(NamedTuple):
    """What a pass read out: ``rows`` rows, in ``engine_ns`` nanoseconds.

    ``tokens``: those whose logits are not the caller's, with their row of ``logits`` [rows, V].
    """

    tokens: list[tuple[TokenInFlight, int]]
    logits: F32
    rows: int
    engine_ns: int


NO_READS = Reads([], _NOTHING, 0, 0)


class PassRunner:
    """Runs passes over the tokens in flight, which are at neighbouring positions, the oldest first."""

    def __init__(self, decoder: SequentialDecoder) -> None:
        program = decoder.backend.program
        self._decoder = decoder
        self._depths = program.depths
        self._shares_kv = program.shares_kv
        block, *others = program.loop.blocks
        self._depths_alike = not others and not program.differs(block)
        # With layers after the loop that keep K/V, logits depend on the final states of older tokens.
        self._in_order = len(program.caches("epilogue")) > 0
        self._layouts = PassLayouts(decoder.cache, decoder.cache_sequence, program.depths, program.width)

    def run_depth(self, flight: list[TokenInFlight]) -> tuple[int, int]:
        """Run one depth for every token that has a block call to make → lanes of the call, nanoseconds in the engine.

        0 lanes: there were only calls of several rows, which go alone.
        """
        single: list[TokenInFlight] = []
        spent = 0
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
                    spent += self._block_alone(token, call)
        if not single:
            return 0, spent
        spent += self._block_shared(flight, single) if self._shares_kv else self._block(single)
        return single[0].depth - single[-1].depth + 1, spent

    def read(self, flight: list[TokenInFlight], plan: DraftPlan) -> Reads:
        """Read out tokens that need logits, and those whose predictions ``plan`` uses.

        Where logits depend on older tokens' final states, a token gets its logits once all before it are final.
        """
        in_order, draft_depth, judge = self._in_order, plan.depth, plan.judge
        reads: list[TokenInFlight] = []
        older_run = False  # has an older token block calls to come?
        for token in flight:
            if (token.asks_logits and not (in_order and older_run)) or (
                token.ran_now and (token.depth == draft_depth or (judge and token.depth > draft_depth))
            ):
                reads.append(token)
            older_run = older_run or not (token.asks_logits or token.call is None)
        if not reads:
            return NO_READS
        lane = flight[: reads[-1].position - flight[0].position + 1] if in_order else reads
        layout, picks = self._lay_out(lane, reads)
        start = perf_counter_ns()
        logits = self._decoder.backend.epilogue(layout.states, picks, layout.lanes, self._decoder.cache)
        spent = perf_counter_ns() - start
        self._decoder.clock.engine_ns += spent
        not_final: list[tuple[TokenInFlight, int]] = []
        oldest, row = flight[0], 0
        older_run = False
        for token in lane:
            if token in reads:
                if token.asks_logits and not (in_order and older_run):
                    own = logits[row : row + 1]
                    lent = token is oldest and not self._decoder.sequence.rule.reads_logits
                    self._send(token, own if lent else own.copy())
                if token.call is not None or token is not oldest:
                    not_final.append((token, row))
                row += 1
            older_run = older_run or token.call is not None
        return Reads(not_final, logits, row, spent)

    def _send(self, token: TokenInFlight, answer: F32) -> None:
        """Send a token the answer of its call, and note the next one. Rows are copied at once."""
        token.asks_logits = False
        try:
            call = token.calls.send(answer)
            while call.stage == COPY:
                copy_to_deeper(call, self._decoder.cache, self._decoder.cache_sequence, self._depths)
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
        backend, cache, clock = self._decoder.backend, self._decoder.cache, self._decoder.clock
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
        out = self._decoder.backend.block(states, lanes, self._decoder.cache)
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
        out = self._decoder.backend.block(call.rows[None], lanes, self._decoder.cache)
        spent = perf_counter_ns() - start
        self._count_calls([call], spent, len(call.rows))
        states = out[0].copy()
        if token.depth != BEFORE_PROLOGUE:
            token.depth, token.state = call.depth, states[-1:]
        self._send(token, states)
        return spent

    def _block_shared(self, flight: list[TokenInFlight], tokens: list[TokenInFlight]) -> int:
        """Do what ``_block`` does where depths share a slot: depth 0 writes it; deeper tokens, as one lane, read it.

        The lane holds neighbours. Tokens in flight between the deeper ones, such as those that left early, run along;
        that writes nothing, and their results are dropped. Where depths have norms, deltas or blocks of their own every
        token has a call to itself.
        """
        spent = 0
        deep = [token for token in tokens if token.call is not None and token.call.depth > 0]
        if not self._depths_alike:
            spent = sum(self._block_alone(token, token.call) for token in deep if token.call is not None)
        elif deep:
            oldest = deep[0].position
            lane = flight[oldest - flight[0].position : deep[-1].position - flight[0].position + 1]
            states = np.stack([token.state[-1] for token in lane])[None]
            lanes = self._layouts.single("block", 1, oldest, np.arange(oldest, oldest + len(lane)))
            start = perf_counter_ns()
            out = self._decoder.backend.block(states, lanes, self._decoder.cache)
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
        clock = self._decoder.clock
        clock.engine_ns += spent
        clock.block_calls += 1
        clock.rows += rows
        share = spent // len(calls)
        block_ns, made = clock.block_ns, clock.calls
        for call in calls:
            block_ns[call.depth] += share
            made[call.depth] += 1

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
