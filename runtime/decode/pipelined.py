"""Depth-pipelined decoding: a token's later depths and the next tokens' earlier ones ride on one read of the block.

A pass is one call of the block with a lane for each active depth: the newest token at depth 0, the one before it at
depth 1, …. What a shallow depth predicts is fed on at once as a draft. When a token leaves the last depth, its
prediction confirms the draft that follows it or refutes it, and a refuted one is forgotten with all behind it, by
lengths alone.

What is final sees only what is final: a depth's rows before a token are those of the tokens before it, and the coda
takes the active tokens as one lane, oldest first, so that the row of the one that leaves follows on full-depth rows.
"""

from __future__ import annotations

from time import perf_counter_ns

import numpy as np

from ..engines.backend import F32, I64, Lanes
from .draft_control import DraftController
from .loop import DepthLoop
from .pass_layout import PassLayout, make_layout
from .sampling import Choose

NONE = -1
"""No token is at that depth, or nothing was predicted."""


class Pipelined:
    """Token by token on a DepthLoop, whose tokens are those that are final; drafts are known here only.

    Whoever runs or resets the loop itself says so with ``begin``.
    """

    def __init__(self, loop: DepthLoop, draft: Choose, pace: DraftController) -> None:
        """``draft`` chooses from a shallow depth's logits; final ones are the caller's (``DraftController.timed``)."""
        program = loop.backend.program
        self.loop, self.pace, self.draft = loop, pace, draft
        self._depths, self._width = program.depths, program.width
        self.depth = program.depths
        """Depths that the last token ran."""
        self._shared = program.shares_kv
        self._at = [NONE] * self._depths
        """By depth: position of the token that the last pass ran there."""
        self._newest = NONE
        self._final = 0
        self._since = 0  # when the work that is not counted yet began
        self._tokens = np.zeros(loop.capacity + 1, np.int64)
        # What each depth predicted for a position; no more than R + 1 positions matter at a time.
        self._predicted = [[NONE] * (self._depths + 1) for _ in range(self._depths - 1)]
        self._reads: list[tuple[int, int, int]] = []  # (position, depth, row of the logits)
        self._logits: F32 | None = None
        self._out = np.zeros((self._depths, 1, self._width), np.float32)
        self._out_low = 0
        self._ids = np.zeros((1, 1), np.int64)
        slot = loop.cache.slot
        self._enter = Lanes.single(0, 0, 1, slot("prologue", loop.sequence, 0))
        self._shapes: dict[tuple[int, ...], PassLayout] = {}
        # Where depths share K and V: the newest token alone, the deeper ones as one lane.
        self._first = Lanes.single(0, 0, 1, slot("block", loop.sequence, 0))
        self._rest: dict[int, tuple[Lanes, F32]] = {}

    def begin(self, ids: I64) -> None:
        """The loop was run at full depth, and the last of its tokens are ids [S]."""
        self._cancel(0)
        self._final = self.loop.cached
        self._newest = self._final - 1
        self._tokens[self._final - len(ids) : self._final] = ids

    def step(self, token: int) -> F32:
        """Run the final ``token`` through the last depth → its logits [1, V], valid until the next call."""
        self._since = perf_counter_ns()
        loop, position = self.loop, self.loop.cached
        if position != self._final:  # truncated
            self._cancel(position)
            self._final = position
        drafted = self._newest >= position
        confirmed = drafted and int(self._tokens[position]) == token
        self._settle(position, token, drafted, confirmed)
        if confirmed:
            feed = self._next()
        else:
            self._cancel(position)
            if self.pace.plan.depth == self._depths - 1 or not self._can_take_back(position):
                return self._alone(token)
            loop.checked(np.array([token], np.int64))
            feed = token
        logits = self._pass(feed)
        while logits is None:
            logits = self._pass(self._next())
        loop.cached = self._final = position + 1
        loop.filled[:] = [loop.cached] * self._depths
        loop.clock.tokens += 1
        self.pace.token()
        return logits

    def _alone(self, token: int) -> F32:
        """A token that nothing rides with: sequential decoding."""
        logits = self.loop.forward(np.array([token], np.int64))
        self._tokens[self._final] = token
        self._newest = self._final
        self._final += 1
        self.pace.alone(perf_counter_ns() - self._since)
        self.pace.token()
        return logits

    def _can_take_back(self, position: int) -> bool:
        """Does a row written at ``position`` leave the rows before it as they are? Not where it moves a window."""
        return self.loop.cache.can_truncate(position + 1, position)

    def _settle(self, position: int, token: int, drafted: bool, confirmed: bool) -> None:
        """The token at ``position`` is final: which depths were right?"""
        place = position % (self._depths + 1)
        for depth, predicted in enumerate(self._predicted):
            if predicted[place] != NONE:
                self.pace.saw(depth, predicted[place] == token)
                predicted[place] = NONE
        self.loop.clock.drafts += drafted
        self.loop.clock.accepted += confirmed

    def _cancel(self, position: int) -> None:
        """Forget the tokens at ``position`` and behind it: nothing but numbers changes."""
        at = self._at
        for depth in range(self._depths):
            if at[depth] >= position:
                at[depth] = NONE
        self._newest = min(self._newest, position - 1)
        self._reads = []
        for p in range(position + 1, position + self._depths + 1):
            for predicted in self._predicted:
                predicted[p % (self._depths + 1)] = NONE

    def _next(self) -> int | None:
        """The draft that the last pass gives: the earliest that differs from what was fed, or a new one."""
        reads, self._reads = self._reads, []
        if self._logits is None:
            return None
        for position, depth, row in reads:  # the oldest position first
            if position > self._newest or position < self._final:
                continue
            after = position + 1
            token = self.draft(self._logits[row], self._tokens[:after], after)
            self._predicted[depth][after % (self._depths + 1)] = token
            if position < self._newest:
                if int(self._tokens[after]) == token:
                    continue
                self._cancel(after)
            if after < self.loop.capacity and self._can_take_back(after):
                return token
            return None
        return None

    def _pass(self, token: int | None) -> F32 | None:
        """One pass, with ``token`` behind the newest one → the logits [1, V] of the last depth if it had a lane."""
        loop, at = self.loop, self._at
        at.pop()
        at.insert(0, NONE)
        entered: F32 | None = None
        if token is not None:
            self._newest += 1
            at[0] = self._newest
            self._tokens[self._newest] = token
            entered = self._prologue(token, self._newest)
        shape = self._shape()
        first = at[shape.high]
        start = perf_counter_ns()
        out = self._block(shape, first, entered)
        blocked = perf_counter_ns()
        logits = self._epilogue(shape, first, out)
        read = perf_counter_ns()
        self._logits = logits
        final = shape.reads and shape.reads[0] == self._depths - 1
        self._reads = [(at[d], d, row) for row, d in enumerate(shape.reads) if d < self._depths - 1]
        clock, end = loop.clock, perf_counter_ns()
        count = shape.high - shape.low + 1
        for depth in range(shape.low, shape.high + 1):
            if at[depth] != NONE:
                clock.block_ns[depth] += (blocked - start) // count
                clock.calls[depth] += 1
                clock.rows += 1
        clock.block_calls += 1
        clock.passes += 1
        clock.engine_ns += read - start
        clock.total_ns += end - self._since
        self.pace.passed(count, blocked - start, len(shape.reads), read - blocked, end - self._since)
        self._since = end
        if not final:
            return None
        assert logits is not None
        return logits[:1]

    def _prologue(self, token: int, position: int) -> F32:
        """The token's state [1, 1, D] before depth 0."""
        lanes = self._enter
        lanes.cached[0] = lanes.positions[0, 0] = position
        lanes.refresh()
        self._ids[0, 0] = token
        return self.loop.backend.prologue(self._ids, lanes, self.loop.cache)

    def _block(self, shape: PassLayout, first: int, entered: F32 | None) -> F32:
        """One depth more for every active token → states [B, 1, D] of the depths from ``shape.low`` on."""
        if self._shared:
            return self._block_shared(shape, first, entered)
        lanes, state, low = shape.lanes, shape.input, shape.low
        if entered is not None:
            state[0] = entered[0]
        begin = max(low, 1, self._out_low + 1)
        if begin <= shape.high:
            state[begin - low :] = self._out[begin - 1 - self._out_low : shape.high - self._out_low]
        np.add(shape.offset, first, out=lanes.cached)
        lanes.positions[:, 0] = lanes.cached
        lanes.refresh()
        out = self.loop.backend.block(state, lanes, self.loop.cache)
        self._out, self._out_low = out, low
        return out

    def _block_shared(self, shape: PassLayout, first: int, entered: F32 | None) -> F32:
        """As ``_block`` where depths share a slot: depth 0 writes it, the deeper tokens read it as one lane of n."""
        backend, cache, out = self.loop.backend, self.loop.cache, self._out
        deep = [d for d in range(self._depths - 1, 0, -1) if self._at[d] != NONE]
        if deep:
            n = len(deep)
            lanes, state = self._rest.get(n) or self._make_rest(n)
            lanes.cached[0] = first
            lanes.positions[0] = np.arange(first, first + n)
            lanes.refresh()
            state[0] = out[[d - 1 for d in deep], 0]
            out[deep, 0] = backend.block(state, lanes, cache)[0]
        if entered is not None:
            self._first.cached[0] = self._first.positions[0, 0] = self._newest
            self._first.refresh()
            out[0] = backend.block(entered, self._first, cache)[0]
        self.loop.clock.block_calls += bool(deep) and entered is not None
        return out[shape.low : shape.high + 1]

    def _make_rest(self, n: int) -> tuple[Lanes, F32]:
        made = self._rest[n] = (
            Lanes.single(1, 0, n, self._first.first_slot),
            np.zeros((1, n, self._width), np.float32),
        )
        return made

    def _epilogue(self, shape: PassLayout, first: int, out: F32) -> F32 | None:
        """Logits [N, V] of ``shape.reads``. A coda's rows from q on are written anew: only what is final stays."""
        backend, cache = self.loop.backend, self.loop.cache
        if not shape.reads:
            return None
        if shape.coda_lane is None:
            return backend.epilogue(out, shape.rows, shape.lanes, cache)
        lane = shape.coda_lane
        lane.cached[0] = first
        np.add(shape.coda_steps, first, out=lane.positions[0])
        lane.refresh()
        np.take(out[:, 0], shape.coda_from, axis=0, out=shape.coda_input[0])
        return backend.epilogue(shape.coda_input, shape.rows, lane, cache)

    def _shape(self) -> PassLayout:
        """The shape of a pass over what is active now; made once for each."""
        plan = self.pace.plan
        active = tuple(d for d in range(self._depths) if self._at[d] != NONE)
        key = (plan.depth, plan.judge, *active)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = make_layout(self.loop, active, plan.depth, plan.judge)
        return shape
