"""Runs the stage calls of one sequence on an engine, one after the other, and counts what they take."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

from ..engines.backend import F32, Backend, RunsPrompts, runs_prompts
from ..engines.kv import KVCache
from ..timing import LoopClock
from .skipped_kv import copy_to_deeper
from .stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, WHOLE, StageCall
from .token_lanes import SequenceLanes

Observe = Callable[[int, F32], None]
"""Called with (depth, state [1, S, D]) after every block call; the state is only lent."""
Result = TypeVar("Result")


class StageRunner:
    """One sequence of a cache on an engine. Logits that it returns belong to the engine: valid until the next call."""

    def __init__(
        self, backend: Backend, cache: KVCache, cache_sequence: int, observe: Observe | None = None
    ) -> None:
        """``cache_sequence``: which of the cache's sequences is this one. ``observe``: it may be set later."""
        self.backend, self.cache, self.cache_sequence = backend, cache, cache_sequence
        self.observe = observe
        self.entered: F32 | None = None
        """The state [1, S, D] that entered depth 0 last, in a call that the host made; only lent."""
        self._clock = LoopClock(backend.program.depths)
        self._lanes = SequenceLanes(cache, cache_sequence, backend.program.depths)
        # What the engine gave last [1, n, D], and its rows [n, D] as they were sent to the sequence: engines know
        # their own arrays when they get them back.
        self._state = np.empty((1, 0, 0), np.float32)
        self._rows: F32 = self._state[0]
        self._outside_ns = 0
        self._epilogue_kv = len(backend.program.caches("epilogue")) > 0

    def _drive(self, calls: Generator[StageCall, F32, Result]) -> Result:
        """Run ``calls`` to their end → what they return."""
        begin = perf_counter_ns()
        self._outside_ns = 0
        call: StageCall | None = None
        try:
            call = next(calls)
            while True:
                call = calls.send(_RUN[call.stage](self, call))
        except StopIteration as end:
            result: Result = end.value
        except BaseException:
            self._broke_off(call)
            raise
        self._clock.total_ns += perf_counter_ns() - begin - self._outside_ns
        return result

    def _broke_off(self, call: StageCall | None) -> None:
        """Note that an error, or Ctrl-C, came in ``call`` or behind it."""

    def _prologue(self, call: StageCall) -> F32:
        lanes = self._lanes.of(call)
        start = perf_counter_ns()
        state = self.backend.prologue(call.rows[None], lanes, self.cache)
        clock = self._clock
        clock.engine_ns += perf_counter_ns() - start
        clock.tokens += len(call.rows)
        clock.passes += 1
        self.entered = self._state = state
        self._rows = state[0]
        return self._rows

    def _block(self, call: StageCall) -> F32:
        lanes = self._lanes.of(call)
        rows, depth = call.rows, call.depth
        state = self._state if rows is self._rows else rows[None]
        start = perf_counter_ns()
        self._state = state = self.backend.block(state, lanes, self.cache)
        spent = perf_counter_ns() - start
        clock = self._clock
        clock.block_ns[depth] += spent
        clock.calls[depth] += 1
        clock.engine_ns += spent
        clock.block_calls += 1
        clock.rows += len(rows)
        self._rows = state[0]
        if self.observe is not None:
            self._show(depth, state)
        return self._rows

    def _fill(self, call: StageCall) -> F32:
        start = perf_counter_ns()
        self.backend.fill(call.rows[None], self._lanes.of(call), self.cache)
        self._clock.engine_ns += perf_counter_ns() - start
        return call.rows[:0]

    def _epilogue(self, call: StageCall) -> F32:
        tokens = self._lanes.place(call)
        lanes = tokens.made[EPILOGUE][call.depth]
        state = self._state if call.rows is self._rows else call.rows[None]
        # Where nothing is read the head still gets one row, because graphs need not take an empty list.
        rows = tokens.all if call.reads > 1 else tokens.last
        start = perf_counter_ns()
        logits = self.backend.epilogue(state, rows, lanes, self.cache)
        self._clock.engine_ns += perf_counter_ns() - start
        return logits

    def _copy(self, call: StageCall) -> F32:
        copy_to_deeper(call, self.cache, self.cache_sequence, self.backend.program.depths)
        return call.rows

    def _whole(self, call: StageCall) -> F32:
        tokens, n = self._lanes.place(call), len(call.rows)
        # An engine's own call says nothing of what is between the stages, and reads out the last token only.
        if n > 1 and call.reads <= 1 and self.observe is None and runs_prompts(self.backend):
            return self._prompt(self.backend, call)
        backend, cache, clock, observe = self.backend, self.cache, self._clock, self.observe
        start = perf_counter_ns()
        self.entered = state = backend.prologue(call.rows[None], tokens.made[PROLOGUE][0], cache)
        engine_ns = perf_counter_ns() - start
        for depth, lanes in enumerate(tokens.depths):
            start = perf_counter_ns()
            state = backend.block(state, lanes, cache)
            spent = perf_counter_ns() - start
            clock.block_ns[depth] += spent
            clock.calls[depth] += 1
            engine_ns += spent
            if observe is not None:
                self._show(depth, state)
        logits: F32 = state[0]  # nobody reads it
        if call.reads or self._epilogue_kv:
            rows = tokens.all if call.reads > 1 else tokens.last
            start = perf_counter_ns()
            logits = backend.epilogue(state, rows, tokens.made[EPILOGUE][len(tokens.depths) - 1], cache)
            engine_ns += perf_counter_ns() - start
        clock.engine_ns += engine_ns
        clock.block_calls += len(tokens.depths)
        clock.rows += n * len(tokens.depths)
        clock.tokens += n
        clock.passes += 1
        return logits

    def _prompt(self, backend: RunsPrompts, call: StageCall) -> F32:
        n, lanes = len(call.rows), self._lanes.of(call)
        start = perf_counter_ns()
        logits = backend.prompt(call.rows[None], call.reads > 0, lanes, self.cache)
        clock = self._clock
        clock.engine_ns += perf_counter_ns() - start
        clock.rows += n * backend.program.depths
        clock.tokens += n
        clock.passes += 1
        return logits

    def _show(self, depth: int, state: F32) -> None:
        """Let the observer see ``state`` [1, n, D] after ``depth``."""
        start = perf_counter_ns()
        assert self.observe is not None
        self.observe(depth, state)
        self._outside_ns += perf_counter_ns() - start


_RUN: dict[str, Callable[[StageRunner, StageCall], F32]] = {
    PROLOGUE: StageRunner._prologue,
    BLOCK: StageRunner._block,
    FILL: StageRunner._fill,
    EPILOGUE: StageRunner._epilogue,
    COPY: StageRunner._copy,
    WHOLE: StageRunner._whole,
}
