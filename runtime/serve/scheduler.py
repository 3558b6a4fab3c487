"""Continuous depth-wise batching: the driver that puts the stage calls of many sequences into few engine calls.

A tick makes one engine call a stage for all sequences whose next stage call is of it, whatever their depth: lanes are
(sequence, depth) pairs (Relaxed Recursive Transformers, arXiv 2410.20672, section 3.8). Sequences come and go between
ticks. A sequence has one stage call pending at a time, so one lane at most in each engine call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.prefill_slots import slot_for_each_depth
from ..decode.sequence import TokenSequence
from ..decode.skipped_kv import copy_to_deeper
from ..decode.stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, StageCall
from ..engines.backend import F32, Backend
from ..engines.kv import KVCache
from ..engines.packed import PackedLanes
from .prefill import PrefillShare

NARROW = 16
"""Stage calls of tokens that decode with at most so many rows run in every tick. Wider ones and those of prompts take
turns, since all others wait for them."""
STAGES = (PROLOGUE, FILL, BLOCK, EPILOGUE)
_KEPT = 512
"""Shapes of engine calls whose arrays are kept: last chunks come in every size."""


@dataclass(eq=False, slots=True)
class Task:
    """The stage calls of one request on ``sequence`` of the cache.

    ``ended`` is called once: with None, or with what the generator raised.
    """

    sequence: int
    calls: Generator[StageCall, F32, None]
    ended: Callable[[BaseException | None], None]
    served: int = 0
    """The tick in which it was added, or last had its turn."""
    prompt: bool = True
    """Whether its calls are those of its prompt still."""


PendingCall = tuple[Task, StageCall]
"""A stage call that has not run yet, and whose it is."""


@dataclass(frozen=True, eq=False, slots=True)
class _Arrays:
    """The arrays of an engine call: lanes, and the ids [N, 1] or states [N, 1, D] of their N rows."""

    lanes: PackedLanes
    rows: npt.NDArray[Any]


_Shape = tuple[str, int, int, int, int, bool]
"""Of an engine call: stage, first slot, lanes, length of the widest, rows, and whether K and V are written."""


@dataclass(frozen=True, eq=False, slots=True)
class _Slots:
    """A cache for block calls, and the arrays of the calls on it."""

    cache: KVCache
    arrays: dict[_Shape, _Arrays] = field(default_factory=dict)


class Scheduler:
    """Runs tasks on the sequences of one cache. For one thread."""

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        sequences: int,
        *,
        aligned: bool = False,
        max_stall: float | None = None,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        """``aligned``: decode steps start together. It pays where all tokens run the same depths: one prologue and one
        epilogue call then serve all sequences, and a new one waits for less than a token's time. ``max_stall``: as in
        ``PrefillShare``. ``clock``: nanoseconds."""
        self.backend, self.cache, self.sequences, self.aligned = backend, cache, sequences, aligned
        self.share = PrefillShare(backend.program.depths, max_stall)
        self._clock = clock
        self.tasks: list[Task] = []
        self.ticks = self.engine_ns = self.total_ns = 0
        """Ticks so far, nanoseconds inside the engine's calls, and in all."""
        self.calls = self.rows = 0
        """Block calls so far, and the rows in them."""
        self._pending: dict[str, list[PendingCall]] = {stage: [] for stage in STAGES}
        self._shared = backend.program.shares_kv
        self._held = np.zeros(sequences * cache.slots, np.int32)  # tokens of each slot of the block
        self._slots = _Slots(cache)
        self._prefill: dict[int, _Slots] = {}  # by sequence: a slot a depth, where the cache has fewer

    def chunk(self) -> int:
        """Return the most tokens of a prefill chunk that starts now."""
        return self.share.tokens(alone=len(self.tasks) <= 1)

    @contextmanager
    def slot_for_each_depth(self, sequence: int, tokens: TokenSequence, new: int) -> Iterator[None]:
        """Give ``sequence`` a slot a depth while its prompt of ``new`` tokens runs, where the cache has fewer.

        The rows of the last depth stay (``kv_layout.LastDepth``).
        """
        with slot_for_each_depth(self.backend, self.cache, sequence, tokens, new, 0) as wide:
            if wide is not None:
                self._prefill[sequence] = _Slots(wide)
            try:
                yield
            finally:
                self._prefill.pop(sequence, None)

    def add(self, task: Task) -> None:
        """Start a task, on a sequence that no other task uses."""
        task.served = self.ticks
        self.tasks.append(task)
        self._send(task, None)

    def remove(self, task: Task) -> StageCall | None:
        """End a task wherever it is → its pending stage call, which will not run; None if it has ended already."""
        if task not in self.tasks:
            return None
        self.tasks.remove(task)
        task.calls.close()
        left = None
        for pending in self._pending.values():
            for owner, call in pending:
                left = call if owner is task else left
            pending[:] = [each for each in pending if each[0] is not task]
        return left

    def tick(self) -> None:
        """Make one engine call a stage for the pending stage calls."""
        begin = self._clock()
        self.ticks += 1
        pending = self._pending
        turns = self._turns()
        midway = self.aligned and any(
            not _takes_turns(*each) for stage in STAGES[1:] for each in pending[stage]
        )
        for stage in STAGES:
            if not (ready := pending[stage]):
                continue
            pending[stage] = []
            together: list[PendingCall] = []
            alone: list[PendingCall] = []
            for each in ready:
                if _takes_turns(*each):
                    (alone if each[0] in turns else pending[stage]).append(each)
                elif midway and stage == PROLOGUE:
                    pending[stage].append(each)
                else:
                    together.append(each)
            for group in [[each] for each in alone] + self._groups(stage, together):
                self._run(stage, group)
        self.total_ns += self._clock() - begin

    def _turns(self) -> set[Task]:
        """Return the tasks that have their turn in this tick: those that have waited longest, the first of them and as
        many more as a tick has room for."""
        wanting = [each for pending in self._pending.values() for each in pending if _takes_turns(*each)]
        if not wanting:
            return set()
        wanting.sort(key=lambda each: each[0].served)
        room, turns = self.chunk(), set[Task]()
        for task, call in wanting:
            room -= len(call.rows)
            if turns and room < 0:
                break
            turns.add(task)
            task.served = self.ticks
        return turns

    def _groups(self, stage: str, together: list[PendingCall]) -> list[list[PendingCall]]:
        """Return the stage calls that share an engine call, each group in the order of its slots."""
        if len(together) > 1:
            together.sort(key=_sequence)
        # Several rows of one sequence have a call to themselves: attention takes lanes × the widest, which gains
        # nothing (demo model: 5.2 ms for 32 rows beside 3 tokens, 4.2 + 0.5 apart), and a padded lane rounds otherwise
        # than it does alone, so that quantized answers would not be those of a lone run.
        looped = stage == BLOCK
        several, ones = [], []
        for each in together:
            if len(each[1].rows) > 1 or (looped and each[0].sequence in self._prefill):
                several.append([each])
            else:
                ones.append(each)
        if not (self._shared and stage == BLOCK):
            return [*([ones] if ones else []), *several]
        # Depths that share K and V: depth 0 writes them, and goes before those that read.
        first = [each for each in ones if each[1].depth == 0]
        deeper = [each for each in ones if each[1].depth > 0]
        return [*(group for group in (first, deeper) if group), *several]

    def _run(self, stage: str, group: list[PendingCall]) -> None:
        """Run ``group`` as one engine call, and send each its part of the answer.

        An error ends what it is about: of several, each runs alone then, and those end that fail again.
        """
        counts = [len(call.rows) for _, call in group]
        try:
            found = self._engine_call(stage, group, counts)
        except Exception as error:
            if len(group) == 1:
                self._end(group[0][0], error)
                return
            for each in group:
                self._run(stage, [each])
            return
        if stage == BLOCK:
            self.calls += 1
            self.rows += sum(counts)
        at = 0
        for (task, _), n in zip(group, counts, strict=True):
            step = 1 if stage == EPILOGUE else n
            self._send(task, found[at : at + step])
            at += step

    def _engine_call(self, stage: str, group: list[PendingCall], counts: list[int]) -> F32:
        """Run ``group`` → what the engine gives, a row a token; of the epilogue one for each call."""
        slots = self._prefill.get(group[0][0].sequence, self._slots) if stage == BLOCK else self._slots
        arrays = self._prepare(slots, stage, group, counts)
        start = self._clock()
        if stage == FILL:
            self.backend.fill(arrays.rows, arrays.lanes, self.cache)
            found = arrays.rows[:0, 0]
        elif stage == EPILOGUE:
            # A copy, here and below: the engine writes its array again before every sequence has used its rows.
            found = self.backend.epilogue(arrays.rows, np.cumsum(counts) - 1, arrays.lanes, self.cache).copy()
        else:
            run = self.backend.prologue if stage == PROLOGUE else self.backend.block
            found = run(arrays.rows, arrays.lanes, slots.cache)[:, 0].copy()
        spent = self._clock() - start
        self.engine_ns += spent
        if group[0][0].prompt:
            self.share.took(stage, sum(counts), spent)
        return found

    def _prepare(self, own: _Slots, stage: str, group: list[PendingCall], counts: list[int]) -> _Arrays:
        """Return the arrays of an engine call, made once for each shape and written in place."""
        looped = stage in (BLOCK, FILL)
        shared = self._shared and stage == BLOCK
        if own is not self._slots:
            slots = [own.cache.slot("block", 0, call.depth) for _, call in group]
        elif looped:
            slots = [self.cache.slot("block", task.sequence, call.depth) for task, call in group]
        else:
            slots = [task.sequence for task, _ in group]
        widest, rows = max(counts), sum(counts)
        alone = widest > 1 or own is not self._slots
        # A lane of several tokens is alone in its call. Lanes of one token name the whole range of slots, whichever
        # sequences there are, so that the same few shapes serve all ticks.
        if alone:
            first, count = slots[0], 1
        else:
            first, count = 0, self.sequences * (self.cache.slots if looped else 1)
        shape = stage, first, count, widest, rows, not shared or group[0][1].depth == 0
        arrays = self._ready(own.arrays, shape, shared)
        lanes = arrays.lanes
        if shared:
            lanes.cached[:] = self._held[first : first + count]
        if not alone:
            calls = [call for _, call in group]
            cached = [call.cached for call in calls]
            positions = [call.positions.item() for call in calls]
            lanes.place(slots, [call.depth for call in calls], cached, positions)
        else:
            call = group[0][1]
            lanes.depth[0], lanes.cached[0], lanes.tokens[0] = call.depth, call.cached, widest
            lanes.positions[0] = call.positions
            lanes.refresh()
        if shared and lanes.fresh:  # deeper ones read, and of a routed sequence not always the last rows
            for slot, (_, call), n in zip(slots, group, counts, strict=True):
                self._held[slot] = call.cached + n
        np.concatenate([call.rows for _, call in group], out=arrays.rows[:, 0])
        return arrays

    def _ready(self, made: dict[_Shape, _Arrays], shape: _Shape, shared: bool) -> _Arrays:
        arrays = made.get(shape)
        if arrays is None:
            stage, first, count, length, rows, fresh = shape
            lanes = PackedLanes.empty(count, length, rows, first, shared=shared, fresh=fresh)
            width = () if stage == PROLOGUE else (self.backend.program.width,)
            if len(made) >= _KEPT:
                made.clear()
            dtype = np.int64 if stage == PROLOGUE else np.float32
            arrays = made[shape] = _Arrays(lanes, np.zeros((rows, 1, *width), dtype))
        return arrays

    def _send(self, task: Task, answer: F32 | None) -> None:
        """Give a task its answer, and note its next stage call. An error of its own ends this task only."""
        try:
            call = next(task.calls) if answer is None else task.calls.send(answer)
            while call.stage == COPY:
                copy_to_deeper(call, self.cache, task.sequence, self.backend.program.depths)
                call = task.calls.send(call.rows)
        except StopIteration:
            self._end(task, None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library is no Exception
            self._end(task, error)
        else:
            self._pending[call.stage].append((task, call))

    def _end(self, task: Task, error: BaseException | None) -> None:
        """End a task that has come to its end, or failed."""
        self.tasks.remove(task)
        task.calls.close()
        task.ended(error)


def _sequence(each: PendingCall) -> int:
    return each[0].sequence


def _takes_turns(task: Task, call: StageCall) -> bool:
    """Whether a call runs when it is its task's turn; all others run in every tick."""
    return task.prompt or len(call.rows) > NARROW
