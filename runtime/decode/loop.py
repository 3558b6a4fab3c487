"""The depth loop, written once: prologue → block at depth 0 … R−1 → epilogue, over a chunk of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal

import numpy as np

from ..checks import longer
from ..engines.backend import F32, I32, I64, Backend, Lanes, RunsPrompts, runs_prompts
from ..engines.kv import KVCache
from ..errors import ContextError, UsageError
from ..timing import LoopClock

_LANES = 512  # kept; chunks that lost some of their tokens come in every size
LogitRows = Literal["last", "all"] | None
Observe = Callable[[int, F32], None]
"""Called with (depth, state [1, S, D]) after every depth of every chunk; the state is only lent."""
Visit = Callable[[int, int, F32], None]
"""Called with (depth, first row, logits [S, V] of the state after that depth); the logits are only lent."""


@dataclass(frozen=True)
class _Call:
    """The lanes of a pass over S tokens: one set of arrays, which the stages' lanes share.

    A pass writes the arrays in place, so that decoding allocates nothing and an engine may keep its bindings.
    """

    cached: I32
    positions: I64
    steps: I64
    last: I64
    all: I64
    prologue: Lanes
    block: tuple[Lanes, ...]
    epilogue: Lanes
    exits: tuple[Lanes, ...]


class DepthLoop:
    """One sequence of a cache, and the tokens that it holds.

    Logits that are returned belong to the engine: they are valid until the next forward.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        sequence: int = 0,
        *,
        chunk: int = 128,
        observe: Observe | None = None,
    ) -> None:
        """``chunk``: most tokens of one pass. ``observe``: see ``Observe``; it may be set later."""
        if chunk < 1:
            raise UsageError(f"the chunk size is {chunk}, wanted at least 1")
        self.backend = backend
        self.cache = cache
        self.sequence = sequence
        self.chunk = chunk
        self.observe = observe
        self.cached = 0
        """Tokens that were run."""
        self.filled = [0] * backend.program.depths
        """Tokens whose K and V are in each depth's slot: all of them, unless some left early."""
        self.entered: F32 | None = None
        """The state [1, S, D] that entered depth 0 in the last pass; only lent."""
        self.clock = LoopClock(backend.program.depths)
        self._depths = backend.program.depths
        self._shares = backend.program.shares_kv
        self.epilogue_has_layers = len(backend.program.caches("epilogue")) > 0
        self._exits: KVCache | None = None
        self._exits_cached = 0
        # Chunk and decode shapes come again and again; any other is the rest of a prompt.
        self._calls: dict[int, _Call] = {s: self._make_call(s) for s in (1, chunk)}
        self._entered: _Call | None = None
        self._lanes: dict[tuple[str, int, int], Lanes] = {}  # by stage, depth, number of tokens

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold."""
        return self.cache.capacity

    def forward(self, ids: I64, rows: LogitRows = "last") -> F32:
        """Run ids [S] on top of the cached tokens, at full depth → logits [N, V].

        N is 1 for the ``"last"`` token, S for ``"all"``, 0 for None (the caches are filled all the same).
        ContextError when they do not fit into the cache; nothing is run then.
        """
        ids = self.checked(ids)
        if min(self.filled) < self.cached:
            raise UsageError("tokens left early here and their K and V are missing; reset the loop first")
        if len(ids) > 1 and self.cache.slots < self.backend.program.kv_slots:
            with self._own_slots(self.cached + len(ids)):
                return self._forward(ids, rows)
        return self._forward(ids, rows)

    def _forward(self, ids: I64, rows: LogitRows) -> F32:
        if len(ids) <= self.chunk:
            return self._pass(ids, rows)
        kept = np.empty((len(ids) if rows == "all" else 0, self.backend.program.vocab_size), np.float32)
        logits = kept
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            last = start + len(part) == len(ids)
            logits = self._pass(part, rows if last or rows == "all" else None)
            if rows == "all":
                kept[start : start + len(part)] = logits
        return kept if rows == "all" else logits

    def forward_exits(self, ids: I64, visit: Visit) -> None:
        """Run ids [S], and read out the state after every depth: ``visit`` gets the logits of each.

        An exit has its own K and V in the epilogue's layers, so all the tokens that are cached must have come
        through here (UsageError otherwise). Only one chunk's logits of one depth exist at a time.
        """
        ids = self.checked(ids)
        if self._exits_cached != self.cached:
            raise UsageError(
                f"{self.cached} tokens are cached, {self._exits_cached} of them with every exit; "
                "reset the loop first"
            )
        if self._exits is None and self._depths > 1:
            # One sequence an exit. Only the epilogue's caches are ever touched, so only they take memory.
            self._exits = self.backend.new_cache(self._depths - 1, self.capacity)
        for start in range(0, len(ids), self.chunk):
            self._pass(ids[start : start + self.chunk], "all", visit, start)
            self._exits_cached = self.cached

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens. Nothing is copied."""
        if not 0 <= tokens <= self.cached:
            raise UsageError(f"cannot truncate {self.cached} cached tokens to {tokens}")
        if tokens > 0 and min(self.filled) < self.cached:
            raise UsageError("tokens left early here, so slots hold different tokens; reset the loop instead")
        if tokens > 0 and not self.cache.can_truncate(self.cached, tokens):
            raise UsageError(f"the sliding window has moved past token {tokens}; reset the loop instead")
        self.cached = tokens
        self.filled[:] = [tokens] * self._depths
        self._exits_cached = min(self._exits_cached, tokens)

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def checked(self, ids: I64) -> I64:
        """ids as a contiguous [S]; UsageError for another shape, ContextError when they do not fit."""
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"token ids of shape {list(ids.shape)}, wanted [S] with at least one")
        if self.cached + len(ids) > self.capacity:
            raise ContextError(
                f"{self.cached} cached and {len(ids)} new tokens do not fit a context of {self.capacity}; "
                "shorten the text" + longer(self.capacity, self.backend.program.context_length)
            )
        return ids

    def _pass(self, ids: I64, rows: LogitRows, visit: Visit | None = None, first_row: int = 0) -> F32:
        """One chunk through every stage. Logits [N, V] as in ``forward``."""
        begin = perf_counter_ns()
        backend, cache, clock, observe = self.backend, self.cache, self.clock, self.observe
        call = self._calls.get(len(ids)) or self._make_call(len(ids))
        self._place(call)
        watched = rows == "all" or observe is not None or visit is not None
        if len(ids) > 1 and not watched and runs_prompts(backend):
            return self._prompt(backend, ids, rows, call)
        outside = 0  # time of the caller's hooks: neither the engine's nor the loop's
        start = perf_counter_ns()
        state = backend.prologue(ids[None], call.prologue, cache)
        engine = perf_counter_ns() - start
        self.entered = state
        for depth in range(self._depths):
            start = perf_counter_ns()
            state = backend.block(state, call.block[depth], cache)
            spent = perf_counter_ns() - start
            clock.block_ns[depth] += spent
            clock.calls[depth] += 1
            engine += spent
            if observe is not None or visit is not None:
                start = perf_counter_ns()
                if observe is not None:
                    observe(depth, state)
                if visit is not None and depth < self._depths - 1:
                    assert self._exits is not None
                    visit(depth, first_row, backend.epilogue(state, call.all, call.exits[depth], self._exits))
                outside += perf_counter_ns() - start

        if rows is None and not self.epilogue_has_layers:
            logits = self._nothing()
        else:
            # Without rows the head still gets one, because graphs need not take an empty list.
            start = perf_counter_ns()
            logits = backend.epilogue(state, call.all if rows == "all" else call.last, call.epilogue, cache)
            engine += perf_counter_ns() - start
            if rows is None:
                logits = self._nothing()
        self.cached += len(ids)
        self.filled[:] = [self.cached] * self._depths
        clock.rows += len(ids) * self._depths
        clock.tokens += len(ids)
        if visit is not None:
            visit(self._depths - 1, first_row, logits)
        clock.passes += 1
        clock.block_calls += self._depths
        clock.engine_ns += engine
        clock.total_ns += perf_counter_ns() - begin - outside
        return logits

    def _prompt(self, backend: RunsPrompts, ids: I64, rows: LogitRows, call: _Call) -> F32:
        """``_pass`` where nobody looks at what is between the stages."""
        start = perf_counter_ns()
        logits = backend.prompt(ids[None], rows == "last", call.prologue, self.cache)
        spent = perf_counter_ns() - start
        self.cached += len(ids)
        self.filled[:] = [self.cached] * self._depths
        clock = self.clock
        clock.rows += len(ids) * self._depths
        clock.tokens += len(ids)
        clock.passes += 1
        clock.engine_ns += spent
        clock.total_ns += spent
        return logits

    def enter(self, ids: I64) -> F32:
        """ids [S] through the prologue → state [1, S, D]; the tokens count as run when the caller says so."""
        n = len(ids)
        call = self._calls.get(n)
        if call is not None:
            self._place(call)
        self._entered = call
        lanes = self._lane("prologue", 0, n, self.cached)
        start = perf_counter_ns()
        state = self.backend.prologue(ids[None], lanes, self.cache)
        self.clock.engine_ns += perf_counter_ns() - start
        self.clock.tokens += n
        return state

    def at_depth(self, depth: int, state: F32, positions: I64 | None = None) -> F32:
        """state [1, n, D] of the tokens at ``positions`` [n] through one depth, behind those in its slot.

        None: the positions follow those in the slot. Where depths share K and V a token's row is its position: given
        positions follow on each other, and deeper than depth 0 they are of tokens that it ran.
        """
        n = state.shape[1]
        first = self.filled[depth] if positions is None or not self._shares else int(positions[0])
        lanes = self._lane("block", depth, n, first, positions)
        start = perf_counter_ns()
        out = self.backend.block(state, lanes, self.cache)
        spent = perf_counter_ns() - start
        self.filled[depth] = max(self.filled[depth], first + n)
        clock = self.clock
        clock.block_ns[depth] += spent
        clock.calls[depth] += 1
        clock.engine_ns += spent
        clock.block_calls += 1
        clock.rows += n
        return out

    def fill_in(self, depth: int, state: F32) -> None:
        """K and V of ``depth`` for the next tokens of its slot, which left with ``state`` [1, n, D] before it."""
        n = state.shape[1]
        lanes = self._lane("block", depth, n, self.filled[depth])
        start = perf_counter_ns()
        self.backend.fill(state, lanes, self.cache)
        self.clock.engine_ns += perf_counter_ns() - start
        self.filled[depth] += n

    def repeat(self, depth: int, position: int) -> None:
        """K and V that ``depth`` made of the token at ``position``, into the slots of all deeper depths."""
        own, *deeper = (self.cache.slot("block", self.sequence, d) for d in range(depth, self._depths))
        for slot in deeper:
            self.cache.copy_rows("block", slot, self.cache, own, position, 1)
        self.filled[depth + 1 :] = [position + 1] * len(deeper)

    def read_out(self, state: F32, first: int, rows: LogitRows = "last") -> F32:
        """state [1, n, D] of the tokens at positions ``first`` … through the epilogue → logits [N, V]."""
        n = state.shape[1]
        if rows is None and not self.epilogue_has_layers:
            return self._nothing()
        lanes = self._lane("epilogue", self._depths - 1, n, first)
        start = perf_counter_ns()
        picked = np.arange(n) if rows == "all" else np.array([n - 1])
        logits = self.backend.epilogue(state, picked, lanes, self.cache)
        self.clock.engine_ns += perf_counter_ns() - start
        return self._nothing() if rows is None else logits

    def _place(self, call: _Call) -> None:
        """The call's tokens follow on those that were run."""
        call.cached[0] = self.cached
        np.add(call.steps, self.cached, out=call.positions[0])
        call.prologue.refresh()  # and with it all that share its arrays

    def _lane(self, stage: str, depth: int, n: int, cached: int, positions: I64 | None = None) -> Lanes:
        """The lane of n tokens that goes on from ``cached``; made once, written in place.

        Where it is that of the tokens that entered last, the arrays of their call are right as they are.
        """
        call = self._entered
        if call is not None and positions is None and cached == self.cached and n == len(call.steps):
            return {"prologue": call.prologue, "epilogue": call.epilogue}.get(stage, call.block[depth])
        lanes = self._lanes.get((stage, depth, n))
        if lanes is None:
            lanes = Lanes.single(depth, 0, n, self.cache.slot(stage, self.sequence, depth))
            if len(self._lanes) >= _LANES:
                self._lanes.clear()
            self._lanes[stage, depth, n] = lanes
        lanes.cached[0] = cached
        lanes.positions[0] = np.arange(cached, cached + n) if positions is None else positions
        lanes.refresh()
        return lanes

    @contextmanager
    def _own_slots(self, tokens: int) -> Iterator[None]:
        """Where one slot serves all depths: a slot a depth while a prompt runs, of which the last one stays.

        Ouro reuses the last depth's K and V when it decodes; doing so within the prompt costs it dearly (arXiv
        2510.25741, section 5.4).
        """
        kept, calls = self.cache, self._calls
        wide = self.backend.new_cache(1, tokens)
        wide.reserve(self.cached)
        for slot in range(wide.slots):
            wide.copy_rows("block", slot, kept, self.sequence, 0, self.cached)
        kept.reserve(tokens)
        self.cache = kept.with_block_of(wide)
        self._calls = {}
        try:
            yield
            kept.copy_rows("block", self.sequence, wide, wide.slots - 1, 0, self.cached)
        finally:
            self.cache, self._calls = kept, calls

    def _nothing(self) -> F32:
        return np.empty((0, self.backend.program.vocab_size), np.float32)

    def _make_call(self, size: int) -> _Call:
        slot = self.cache.slot
        prologue = Lanes.single(0, 0, size, slot("prologue", self.sequence, 0))
        last = self._depths - 1
        return _Call(
            cached=prologue.cached,
            positions=prologue.positions,
            steps=np.arange(size),
            last=np.array([size - 1]),
            all=np.arange(size),
            prologue=prologue,
            block=tuple(prologue.at(d, slot("block", self.sequence, d)) for d in range(self._depths)),
            epilogue=prologue.at(last, slot("epilogue", self.sequence, last)),
            exits=tuple(prologue.at(d, slot("epilogue", d, d)) for d in range(last)),
        )
