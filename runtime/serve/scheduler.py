"""Continuous depth-wise batching: the wishes of many sequences, put into as few engine calls as possible.

A tick calls each stage once for all that wait for it, whatever their depth: lanes are (sequence, depth) pairs
(Relaxed Recursive Transformers, arXiv 2410.20672, section 3.8). Sequences come and go between ticks. A sequence wants
one thing at a time, so in a tick it has one lane in each stage at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.stage_call import StageCall
from ..engines.backend import F32, Backend
from ..engines.kv import KVCache
from ..engines.packed import PackedLanes

NARROW = 16
"""Rows of a call that goes in every tick; those with more take turns, for the others wait that long."""
CHUNK, CHUNK_ALONE = 32, 128
"""Tokens of a prompt that go through at once beside others, which wait that long; and with nobody else there."""
STAGES = ("prologue", "fill", "block", "epilogue")
_CALLS = 512  # kept; the rest of a prompt comes in every size


@dataclass(eq=False, slots=True)
class Task:
    """One sequence's wishes. ``ended`` is called once: with None, or with what the wishes themselves raised."""

    wishes: Generator[StageCall, F32, None]
    ended: Callable[[BaseException | None], None]
    sequence: int = -1
    served: int = 0
    """The tick in which it came, or last had a wide call."""


PendingCall = tuple[Task, StageCall]


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """Lanes, and the ids [N, 1] or states [N, 1, D] that go with them."""

    lanes: PackedLanes
    rows: npt.NDArray[Any]


class Scheduler:
    """Tasks on the sequences of one cache. Not for several threads."""

    def __init__(self, backend: Backend, cache: KVCache, sequences: int, *, aligned: bool = False) -> None:
        """``aligned``: tokens start together. It pays where all run the same depths: one prologue and epilogue call
        serves all of them, and a newcomer waits for less than a token's time."""
        self.backend, self.cache, self.sequences, self.aligned = backend, cache, sequences, aligned
        self.free = deque(range(sequences))
        """Sequences that nobody uses."""
        self.tasks: list[Task] = []
        self.ticks = self.engine_ns = self.total_ns = 0
        """Ticks so far, nanoseconds inside the engine's calls, and in all."""
        self.calls = self.rows = 0
        """Block calls so far, and the rows in them."""
        self._wants: dict[str, list[PendingCall]] = {stage: [] for stage in STAGES}
        self._shared = backend.program.shares_kv
        self._held = np.zeros(sequences * cache.slots, np.int32)  # tokens of each slot of the block
        self._calls: dict[tuple[str, int, int, int, int, bool], _Call] = {}

    def chunk(self) -> int:
        """Tokens of a prompt that may go through at once."""
        return CHUNK_ALONE if len(self.tasks) <= 1 else CHUNK

    def add(self, task: Task) -> None:
        """Begin a task; there must be a free sequence."""
        task.sequence, task.served = self.free.popleft(), self.ticks
        self.tasks.append(task)
        self._send(task, None)

    def remove(self, task: Task) -> None:
        """Drop a task, wherever it is. Its sequence is free at once; what it left in the cache is written over."""
        if task in self.tasks:
            self._drop(task)
            for wants in self._wants.values():
                wants[:] = [want for want in wants if want[0] is not task]
            task.wishes.close()

    def tick(self) -> None:
        """One call of each stage for those who wait for it. What a call itself raises is raised."""
        begin = perf_counter_ns()
        self.ticks += 1
        wants = self._wants
        turn = self._turn()
        midway = self.aligned and any(
            len(ask.rows) <= NARROW for stage in STAGES[1:] for _, ask in wants[stage]
        )
        for stage in STAGES:
            if not (ready := wants[stage]):
                continue
            wants[stage] = []
            together: list[PendingCall] = []
            for want in ready:
                task, ask = want
                if len(ask.rows) > NARROW:
                    if task is turn:
                        self._call(stage, [want])
                    else:
                        wants[stage].append(want)
                elif midway and stage == "prologue":
                    wants[stage].append(want)
                else:
                    together.append(want)
            for group in self._groups(stage, together):
                self._call(stage, group)
        self.total_ns += perf_counter_ns() - begin

    def _turn(self) -> Task | None:
        """Whose wide call may go in this tick: theirs who have waited longest."""
        wide = [task for wants in self._wants.values() for task, ask in wants if len(ask.rows) > NARROW]
        if not wide:
            return None
        turn = min(wide, key=lambda task: task.served)
        turn.served = self.ticks
        return turn

    def _groups(self, stage: str, together: list[PendingCall]) -> list[list[PendingCall]]:
        """Who goes in a call together, each group in the order of its slots."""
        if len(together) > 1:
            together.sort(key=_sequence)
        # Several rows of one sequence have a call to themselves: attention takes lanes × the widest, which gains
        # nothing (demo model: 5.2 ms for 32 rows beside 3 tokens, 4.2 + 0.5 apart), and a padded lane rounds otherwise
        # than it does alone, so that quantized answers would not be those of a lone run.
        several = [[want] for want in together if len(want[1].rows) > 1]
        ones = [want for want in together if len(want[1].rows) == 1]
        if not (self._shared and stage == "block"):
            return [*([ones] if ones else []), *several]
        # Depths that share K and V: depth 0 writes them, and goes before those that read.
        first = [want for want in ones if want[1].depth == 0]
        deeper = [want for want in ones if want[1].depth > 0]
        return [*(group for group in (first, deeper) if group), *several]

    def _call(self, stage: str, group: list[PendingCall]) -> None:
        """One call for ``group``, and its answers to each."""
        counts = [len(ask.rows) for _, ask in group]
        call = self._prepare(stage, group, counts)
        start = perf_counter_ns()
        if stage == "fill":
            self.backend.fill(call.rows, call.lanes, self.cache)
            found = call.rows[:0, 0]
        elif stage == "epilogue":
            # A copy, here and below: the engine may use its array again before a course has used its own.
            found = self.backend.epilogue(call.rows, np.cumsum(counts) - 1, call.lanes, self.cache).copy()
        else:
            run = self.backend.prologue if stage == "prologue" else self.backend.block
            found = run(call.rows, call.lanes, self.cache)[:, 0].copy()
        self.engine_ns += perf_counter_ns() - start
        if stage == "block":
            self.calls += 1
            self.rows += len(call.rows)
        at = 0
        for (task, _), n in zip(group, counts, strict=True):
            step = 1 if stage == "epilogue" else n
            self._send(task, found[at : at + step])
            at += step

    def _prepare(self, stage: str, group: list[PendingCall], counts: list[int]) -> _Call:
        """The lanes and rows of a call, written into arrays that are made once for each shape."""
        looped = stage in ("block", "fill")
        shared = self._shared and stage == "block"
        if looped:
            slots = [self.cache.slot("block", task.sequence, ask.depth) for task, ask in group]
        else:
            slots = [task.sequence for task, _ in group]
        widest, rows = max(counts), sum(counts)
        # A lane alone has attention to itself. Lanes of one token keep the slots' whole range, whoever is there, so
        # that the same few calls serve all ticks.
        if widest > 1:
            first, count = slots[0], 1
        else:
            first, count = 0, self.sequences * (self.cache.slots if looped else 1)
        call = self._ready((stage, first, count, widest, rows, not shared or group[0][1].depth == 0), shared)
        lanes = call.lanes
        if shared:
            lanes.cached[:] = self._held[first : first + count]
        if widest == 1:
            asks = [ask for _, ask in group]
            cached = [ask.cached for ask in asks]
            positions = [ask.positions.item() for ask in asks]
            lanes.place(slots, [ask.depth for ask in asks], cached, positions)
        else:
            ask = group[0][1]
            lanes.depth[0], lanes.cached[0], lanes.tokens[0] = ask.depth, ask.cached, widest
            lanes.positions[0] = ask.positions
            lanes.refresh()
        if shared and lanes.fresh:  # deeper ones read, and of a routed sequence not always the last rows
            for slot, (_, ask), n in zip(slots, group, counts, strict=True):
                self._held[slot] = ask.cached + n
        np.concatenate([ask.rows for _, ask in group], out=call.rows[:, 0])
        return call

    def _ready(self, key: tuple[str, int, int, int, int, bool], shared: bool) -> _Call:
        call = self._calls.get(key)
        if call is None:
            stage, first, count, length, rows, fresh = key
            lanes = PackedLanes.empty(count, length, rows, first, shared=shared, fresh=fresh)
            width = () if stage == "prologue" else (self.backend.program.width,)
            if len(self._calls) >= _CALLS:
                self._calls.clear()
            dtype = np.int64 if stage == "prologue" else np.float32
            call = self._calls[key] = _Call(lanes, np.zeros((rows, 1, *width), dtype))
        return call

    def _send(self, task: Task, answer: F32 | None) -> None:
        """Give a task what it asked for, and hear its next wish. An error of its own ends this task only."""
        try:
            ask = next(task.wishes) if answer is None else task.wishes.send(answer)
        except StopIteration:
            self._drop(task)
            task.ended(None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library is no Exception
            self._drop(task)
            task.ended(error)
        else:
            self._wants[ask.stage].append((task, ask))

    def _drop(self, task: Task) -> None:
        self.tasks.remove(task)
        self.free.append(task.sequence)


def _sequence(want: PendingCall) -> int:
    return want[0].sequence
