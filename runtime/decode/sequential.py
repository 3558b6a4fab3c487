"""The driver for one sequence alone: runs the stage calls of a ``TokenSequence`` on an engine, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

from ..checks import longer
from ..engines.backend import F32, I64, Backend, RunsPrompts, runs_prompts
from ..engines.kv import KVCache
from ..errors import ContextError, UsageError
from ..timing import LoopClock
from .policy import Policy, full_depth
from .prefill_slots import slot_for_each_depth
from .sequence import LogitRows, TokenSequence
from .skipped_kv import copy_to_deeper
from .stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, WHOLE, StageCall
from .token_lanes import SequenceLanes

Observe = Callable[[int, F32], None]
"""Called with (depth, state [1, S, D]) after every block call; the state is only lent."""
Result = TypeVar("Result")


class SequentialDecoder:
    """One sequence of a cache under a policy, from empty.

    Logits that are returned belong to the engine: they are valid until the next call.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        policy: Policy | None = None,
        heads: Mapping[str, F32] | None = None,
        *,
        cache_sequence: int = 0,
        chunk: int = 128,
        observe: Observe | None = None,
    ) -> None:
        """``policy``: by default full depth, with K and V as the model and the cache have them.

        ``heads``: what the host computes of a state (``bundle/heads.py``). ``cache_sequence``: which of the cache's
        sequences is this one. ``chunk``: most tokens of a text that go through together. ``observe``: see ``Observe``;
        it may be set later.
        """
        if chunk < 1:
            raise UsageError(f"the chunk size is {chunk}, wanted at least 1")
        self.backend, self.cache, self.cache_sequence = backend, cache, cache_sequence
        self.heads = heads or {}
        self.chunk = chunk
        self.observe = observe
        self.clock = LoopClock(backend.program.depths)
        self.depth = 0
        """Depths that the last token ran."""
        self.ran: I64 = np.empty(0, np.int64)
        """Depths that each token of the last text ran."""
        self.entered: F32 | None = None
        """The state [1, S, D] that entered depth 0 last; only lent."""
        self._lanes = SequenceLanes(cache, cache_sequence, backend.program.depths)
        # What the engine gave last [1, n, D], and its rows [n, D] as they were sent to the sequence: engines know
        # their own arrays when they get them back.
        self._state = np.empty((1, 0, 0), np.float32)
        self._rows: F32 = self._state[0]
        self._outside_ns = 0
        self._coda = len(backend.program.caches("epilogue")) > 0
        self.sequence: TokenSequence
        """What the driver drives."""
        self.restart(policy or full_depth(backend.program, cache.slots))

    def restart(self, policy: Policy) -> None:
        """Begin from empty, under ``policy``, over the same slots: one that the engine can have (``modes.py``)."""
        chunk = self.chunk  # without self: a cycle would keep the cache until the next collection
        self.sequence = TokenSequence(self.backend.program, policy, self.heads, lambda: chunk, self.clock)
        self.sequence.whole = True

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold."""
        return self.cache.capacity

    @property
    def cached(self) -> int:
        """Tokens that were run."""
        return self.sequence.cached

    @property
    def filled(self) -> list[int]:
        """By depth: tokens whose K and V are in its slot."""
        return self.sequence.filled

    def prompt(self, ids: I64, rows: LogitRows = "last") -> F32:
        """Run ids [S] on top of the cached tokens → logits [N, V]; ``rows`` as in ``TokenSequence.prompt``.

        ContextError when they do not fit into the cache; nothing is run then.
        """
        ids = self.checked(ids)
        with self._slot_for_each_depth(len(ids)):
            logits, self.ran = self._drive(self.sequence.prompt(ids, rows))
        self.depth = self.ran[-1].item()
        return logits

    def step(self, token: int) -> F32:
        """Run one more token, as a generated one → its logits [1, V]; ``depth`` says how deep it went."""
        if self.sequence.cached >= self.cache.capacity:
            self.checked(np.array([token], np.int64))
        call = self.sequence.whole_step(token)
        if call is None:
            logits, self.depth = self._drive(self.sequence.step(token))
            return logits
        begin = perf_counter_ns()
        self._outside_ns = 0
        logits = self._whole(call)
        self.sequence.ran_whole(call)
        self.depth = len(self.filled)
        self.clock.total_ns += perf_counter_ns() - begin - self._outside_ns
        return logits

    def every(self, ids: I64) -> Iterator[tuple[F32, int]]:
        """Run each of ids [S] as a generated token, in turn → its logits [1, V], the depths that it ran."""
        if self.sequence.rule.whole_text:
            logits = self.prompt(ids, "all")
            yield from ((logits[i : i + 1], int(depth)) for i, depth in enumerate(self.ran))
            return
        for token in ids.tolist():
            yield self.step(token), self.depth

    def can_truncate(self, tokens: int) -> bool:
        """Return whether the slots still hold what they held when the first ``tokens`` tokens had been run."""
        return self.sequence.can_truncate(self.cache, tokens)

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens; nothing is copied. UsageError unless ``can_truncate``."""
        if 0 <= tokens <= self.cached and not self.can_truncate(tokens):
            raise UsageError(
                f"the cache no longer has what it had after {tokens} tokens: a sliding window has moved on, or a layer "
                "keeps its last row only; start from an empty context instead"
            )
        self.sequence.truncate(tokens)

    def reset(self) -> None:
        """Forget everything."""
        self.sequence.truncate(0)

    def checked(self, ids: I64) -> I64:
        """Return ids as a contiguous [S]; UsageError for another shape, ContextError when they do not fit."""
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"token ids of shape {list(ids.shape)}, wanted [S] with at least one")
        if self.cached + len(ids) > self.capacity:
            raise ContextError(
                f"{self.cached} cached and {len(ids)} new tokens do not fit a context of {self.capacity}; "
                "shorten the text" + longer(self.capacity, self.backend.program.context_length)
            )
        return ids

    def _drive(self, calls: Generator[StageCall, F32, Result]) -> Result:
        """Run ``calls`` to their end → what they return."""
        begin = perf_counter_ns()
        self._outside_ns = 0
        try:
            call = next(calls)
            while True:
                call = calls.send(_RUN[call.stage](self, call))
        except StopIteration as end:
            result: Result = end.value
        self.clock.total_ns += perf_counter_ns() - begin - self._outside_ns
        return result

    def _prologue(self, call: StageCall) -> F32:
        lanes = self._lanes.of(call)
        start = perf_counter_ns()
        state = self.backend.prologue(call.rows[None], lanes, self.cache)
        clock = self.clock
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
        clock = self.clock
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
        self.clock.engine_ns += perf_counter_ns() - start
        return call.rows[:0]

    def _epilogue(self, call: StageCall) -> F32:
        tokens = self._lanes.place(call)
        lanes = tokens.made[EPILOGUE][call.depth]
        state = self._state if call.rows is self._rows else call.rows[None]
        # Where nothing is read the head still gets one row, because graphs need not take an empty list.
        rows = tokens.all if call.reads > 1 else tokens.last
        start = perf_counter_ns()
        logits = self.backend.epilogue(state, rows, lanes, self.cache)
        self.clock.engine_ns += perf_counter_ns() - start
        return logits

    def _copy(self, call: StageCall) -> F32:
        copy_to_deeper(call, self.cache, self.cache_sequence, self.backend.program.depths)
        return call.rows

    def _whole(self, call: StageCall) -> F32:
        tokens, n = self._lanes.place(call), len(call.rows)
        # An engine's own call says nothing of what is between the stages, and reads out the last token only.
        if n > 1 and call.reads <= 1 and self.observe is None and runs_prompts(self.backend):
            return self._prompt(self.backend, call)
        backend, cache, clock, observe = self.backend, self.cache, self.clock, self.observe
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
        if call.reads or self._coda:
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
        clock = self.clock
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

    @contextmanager
    def _slot_for_each_depth(self, new: int) -> Iterator[None]:
        """Give each depth a slot while a prompt of ``new`` tokens runs, where one slot serves all depths of a model
        that was trained with more. The last depth's rows stay."""
        kept, lanes, slot = self.cache, self._lanes, self.cache_sequence
        with slot_for_each_depth(self.backend, kept, slot, self.sequence, new, slot) as wide:
            if wide is not None:
                self.cache, self._lanes = wide, SequenceLanes(wide, slot, self.backend.program.depths)
            try:
                yield
            finally:
                self.cache, self._lanes = kept, lanes


_RUN: dict[str, Callable[[SequentialDecoder, StageCall], F32]] = {
    PROLOGUE: SequentialDecoder._prologue,
    BLOCK: SequentialDecoder._block,
    FILL: SequentialDecoder._fill,
    EPILOGUE: SequentialDecoder._epilogue,
    COPY: SequentialDecoder._copy,
    WHOLE: SequentialDecoder._whole,
}
