"""The stage calls of several sequences as one call of the engine: their lanes, in arrays that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.prefill_slots import slot_for_each_depth
from ..decode.sequence import TokenSequence
from ..decode.stage_call import BLOCK, EPILOGUE, FILL, PROLOGUE
from ..engines.backend import F32, Backend
from ..engines.kv import KVCache
from ..engines.packed import PackedLanes
from .tasks import PendingCall

_KEPT = 512
"""Shapes of engine calls whose arrays are kept: last chunks come in every size."""


@dataclass(frozen=True, eq=False, slots=True)
class _Arrays:
    """The arrays of an engine call: lanes, and the ids [N, 1] or states [N, 1, D] of their N rows."""

    lanes: PackedLanes
    rows: npt.NDArray[Any]


_Shape = tuple[str, int, int, int, int, bool]
"""Of an engine call: stage, first slot, lanes, length of the widest, rows, and whether K/V are written."""


@dataclass(frozen=True, eq=False, slots=True)
class _Slots:
    """A cache for block calls, and the arrays of the calls on it."""

    cache: KVCache
    arrays: dict[_Shape, _Arrays] = field(default_factory=dict)


class PackedCalls:
    """Calls on the sequences of one cache."""

    def __init__(self, backend: Backend, cache: KVCache, sequences: int) -> None:
        self._backend, self._cache, self._sequences = backend, cache, sequences
        self._shared = backend.program.shares_kv
        self._held = np.zeros(sequences * cache.slots, np.int32)  # tokens of each slot of the block
        self._slots = _Slots(cache)
        self._prefill: dict[int, _Slots] = {}  # by sequence: a slot a depth, where the cache has fewer

    @contextmanager
    def slot_for_each_depth(self, sequence: int, tokens: TokenSequence, new: int) -> Iterator[None]:
        """Give ``sequence`` a slot a depth while its prompt of ``new`` tokens runs, where the cache has fewer.

        The rows of the last depth stay (``kv_layout.LastDepth``).
        """
        with slot_for_each_depth(self._backend, self._cache, sequence, tokens, new, 0) as wide:
            if wide is not None:
                self._prefill[sequence] = _Slots(wide)
            try:
                yield
            finally:
                self._prefill.pop(sequence, None)

    def groups(self, stage: str, together: list[PendingCall]) -> list[list[PendingCall]]:
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
        # Depths that share K/V: depth 0 writes them, and goes before those that read.
        first = [each for each in ones if each[1].depth == 0]
        deeper = [each for each in ones if each[1].depth > 0]
        return [*(group for group in (first, deeper) if group), *several]

    def run(self, stage: str, group: list[PendingCall]) -> F32:
        """Run ``group`` → what the engine gives, a row a token; of the epilogue one a call."""
        backend = self._backend
        slots = self._prefill.get(group[0][0].sequence, self._slots) if stage == BLOCK else self._slots
        counts = [len(call.rows) for _, call in group]
        arrays = self._prepare(slots, stage, group, counts)
        if stage == FILL:
            backend.fill(arrays.rows, arrays.lanes, self._cache)
            return arrays.rows[:0, 0]
        # Copies: the engine writes its array again before every sequence has used its rows.
        if stage == EPILOGUE:
            last = np.cumsum(counts) - 1
            return backend.epilogue(arrays.rows, last, arrays.lanes, self._cache).copy()
        run = backend.prologue if stage == PROLOGUE else backend.block
        return run(arrays.rows, arrays.lanes, slots.cache)[:, 0].copy()

    def _prepare(self, own: _Slots, stage: str, group: list[PendingCall], counts: list[int]) -> _Arrays:
        """Return the arrays of an engine call, made once for each shape and written in place."""
        looped = stage in (BLOCK, FILL)
        shared = self._shared and stage == BLOCK
        if own is not self._slots:
            slots = [own.cache.slot("block", 0, call.depth) for _, call in group]
        elif looped:
            slots = [self._cache.slot("block", task.sequence, call.depth) for task, call in group]
        else:
            slots = [task.sequence for task, _ in group]
        widest, rows = max(counts), sum(counts)
        alone = widest > 1 or own is not self._slots
        # A lane of several tokens is alone in its call. Lanes of one token name the whole range of slots, whichever
        # sequences there are, so that the same few shapes serve all ticks.
        if alone:
            first, count = slots[0], 1
        else:
            first, count = 0, self._sequences * (self._cache.slots if looped else 1)
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
            width = () if stage == PROLOGUE else (self._backend.program.width,)
            if len(made) >= _KEPT:
                made.clear()
            dtype = np.int64 if stage == PROLOGUE else np.float32
            arrays = made[shape] = _Arrays(lanes, np.zeros((rows, 1, *width), dtype))
        return arrays


def _sequence(each: PendingCall) -> int:
    return each[0].sequence
