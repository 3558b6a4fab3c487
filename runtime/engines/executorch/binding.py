"""A method bound to slots of a cache: its inputs are arrays that are written in place, call after call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...model.program import Program
from ...model.rotary import RotaryTables
from ..backend import F32, I64
from ..kv import KVCache, rows_kept
from .bridge import Bridge
from .kinds import CACHED, MethodSignature, RotaryInput, role
from .masks import SeenRows

I32 = npt.NDArray[np.int32]


class Rotary:
    """cos and sin as the methods take them: [P, dims], sin negative where a dim is the first of its pair."""

    def __init__(self, program: Program) -> None:
        found = dict.fromkeys(RotaryInput(op.by, op.pairs) for op in program.rotates)
        self._tables = {rotary_input: _PairedTables(rotary_input) for rotary_input in found}

    def rows(self, rotary_input: RotaryInput, capacity: int) -> tuple[F32, F32]:
        """Return cos and sin of at least the first ``capacity`` positions."""
        return self._tables[rotary_input].rows(capacity)


class _PairedTables:
    """cos and sin [P, dims] of one rotary input, made when more positions are wanted."""

    def __init__(self, rotary_input: RotaryInput) -> None:
        self._tables, self._pairs = RotaryTables(rotary_input.by), rotary_input.pairs
        self._half = self._tables.rows(0)[0]
        self._paired = self._half, self._half

    def rows(self, capacity: int) -> tuple[F32, F32]:
        """Return cos and sin [P, dims] of at least the first ``capacity`` positions."""
        cos, sin = self._tables.rows(capacity)
        if cos is not self._half:
            self._half = cos
            self._paired = self._whole(cos, cos), self._whole(-sin, sin)
        return self._paired

    def _whole(self, first: F32, second: F32) -> F32:
        """Return [P, dims] of [P, dims/2] for the first and for the second dim of each pair."""
        if self._pairs:
            return np.stack((first, second), -1).reshape(len(first), -1)
        return np.concatenate((first, second), 1)


class Binding:
    """A method of ``rows`` rows that takes the inputs of ``signature``.

    ``slots``: of each row, or the one of a chunk.
    """

    def __init__(
        self, bridge: Bridge, program: Program, signature: MethodSignature, kind: str, name: str, rows: int,
        cache: KVCache, slots: tuple[int, ...], chunk: bool, rotary: Rotary,
    ) -> None:  # fmt: skip
        self.bridge, self.slots, self.chunk = bridge, slots, chunk
        self.window = program.moving_window
        stored = cache.stages[CACHED[role(kind)]]
        used = stored if signature.caches or signature.fresh else []
        self.pairs = [array for pair in used for array in pair]
        self.cache_rows = rows_of(cache, kind)
        self.most_rows = cache.rows
        self.state = np.zeros((rows, signature.width), np.float32)
        self.depth = np.zeros((rows, signature.depths), np.float32)
        self._turns = [
            (table, np.zeros((rows, 1, rotary_input.by.dims), np.float32))
            for rotary_input in signature.rotary_inputs
            for table in rotary.rows(rotary_input, cache.capacity)
        ]
        self._masks = [
            SeenRows(mask, rows, self.cache_rows, cache.rows, slots, chunk) for mask in signature.masks
        ]
        caches = [
            array[slot]
            for i in range(0, len(self.pairs) if signature.caches else 0, 2)
            for slot in slots
            for array in self.pairs[i : i + 2]
        ]
        scattered = [array[slot] for array in self.pairs for slot in slots]
        self.out = np.zeros((rows, signature.gives), np.float32)
        shapes = [(rows, array.shape[1], array.shape[3]) for array in self.pairs] if signature.fresh else []
        fresh = [np.zeros(shape, np.float32) for shape in shapes]
        inputs = [
            self.state,
            *([self.depth] if signature.depths else []),
            *(written for _, written in self._turns),
        ]
        inputs += [array for mask in self._masks for array in mask.arrays]
        outputs = [*([self.out] if signature.gives else []), *fresh]
        self.plan = bridge.plan(name, [*inputs, *caches], outputs, scattered, len(slots), fresh)
        # What the input says now: from one token to the next it seldom changes.
        self._has_depth, self._depths = signature.depths > 0, list[int]()

    def run(self, state: F32, depth: I64, positions: I64, cached: I32) -> F32:
        """Return the output [n, D] of state [n, D] at ``depth`` and ``positions`` [n], behind ``cached`` [n] tokens
        of its lane."""
        n = len(state)
        self.state[:n] = state
        if self._has_depth and (depths := depth.tolist()) != self._depths:
            self._depths = depths
            self.depth.fill(0)
            self.depth[np.arange(n), depth] = 1
        where = positions if n > 1 else int(positions[0])  # a single one is found twice as fast
        for table, written in self._turns:
            written[:n, 0] = table[where]
        at, kept = self._rows(cached)
        for mask in self._masks:
            mask.show(at, n)
        self.plan.at[:n] = at
        self.bridge.run(self.plan, n)
        for slot, (rows, surplus) in kept.items():
            if surplus:
                self._move(slot, surplus, rows - surplus)
        return self.out[:n]

    def _rows(self, cached: I32) -> tuple[I32, dict[int, tuple[int, int]]]:
        """Return the cache rows of the new tokens, and by slot (rows in use then, rows that a window drops after the
        call)."""
        if self.window is None:
            return cached, {}
        at, kept = np.zeros_like(cached), {}
        owners = self.slots * len(cached) if self.chunk else self.slots
        for slot in self.slots:
            mine = [i for i in range(len(cached)) if owners[i] == slot]
            total = int(cached[mine[-1]]) + 1
            held = rows_kept(int(cached[mine[0]]), self.most_rows, self.window)
            room = self.most_rows - len(mine)
            if held > room:  # the oldest go, all of which lie behind the window
                self._move(slot, held - room, room)
                held = room
            at[mine] = held + np.arange(len(mine))
            used = held + len(mine)
            kept[slot] = (used, used - rows_kept(total, self.most_rows, self.window))
        return at, kept

    def _move(self, slot: int, start: int, count: int) -> None:
        for array in self.pairs:
            array[slot, :, :count] = array[slot, :, start : start + count].copy()


def rows_of(cache: KVCache, kind: str) -> int:
    """Return how many rows the caches of a kind are laid out for now."""
    pairs = cache.stages[CACHED[role(kind)]]
    return pairs[0][0].shape[2] if pairs else 0
