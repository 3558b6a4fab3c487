"""One method bound to slots of a cache: its inputs are written in place, call after call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..backend import F32, I64
from ..kv import KVCache, resident
from ..model.program import Program
from ..model.rotary import RotaryTables
from .bridge import Bridge

HIDDEN = np.float32(-1e9)
I32 = npt.NDArray[np.int32]
STAGES = {"prologue": "prologue", "block": "block", "read": "block", "fill": "block", "coda": "epilogue"}
"""The stage of the runtime whose caches a kind of method has."""


def depth_matters(program: Program) -> bool:
    """Does anything differ between the depths of the loop?"""
    return program.depths > 1 and program.differs(program.stage("block"))


class Rotary:
    """cos and sin as the methods take them: [P, hd], the first half of sin negative."""

    def __init__(self, program: Program) -> None:
        self._tables = RotaryTables(program.rotations[0])
        self._half = self._tables.rows(0)[0]
        self._turned = self._half, self._half

    def rows(self, capacity: int) -> tuple[F32, F32]:
        """cos and sin of at least the first ``capacity`` positions."""
        cos, sin = self._tables.rows(capacity)
        if cos is not self._half:
            self._half = cos
            self._turned = np.concatenate((cos, cos), 1), np.concatenate((-sin, sin), 1)
        return self._turned


class Binding:
    """A method of ``rows`` rows, in the order of inputs of export/pte/methods.py.

    ``slots``: of each row, or the one of a chunk.
    """

    def __init__(
        self, bridge: Bridge, program: Program, kind: str, name: str, rows: int, cache: KVCache, slots: tuple[int, ...],
        chunk: bool, rotary: Rotary,
    ) -> None:  # fmt: skip
        self.bridge, self.program, self.kind, self.chunk = bridge, program, kind, chunk
        self._cos, self._sin = rotary.rows(cache.capacity)
        self.slots, self.reads = slots, kind == "read"
        self.pairs = [array for pair in cache.stages[STAGES[kind]] for array in pair]
        self.cache_rows, self.most_rows = self.pairs[0].shape[2], cache.rows
        self.window = program.window
        width, seen = program.width, self.cache_rows + (0 if self.reads else rows)
        self.state = np.zeros((rows, width), np.float32)
        self.depth = np.zeros((rows, program.depths), np.float32)
        self.has_depth = STAGES[kind] == "block" and depth_matters(program)
        self.cos = np.zeros((rows, 1, program.rotations[0].dims), np.float32)
        self.sin = np.zeros_like(self.cos)
        shape = (1, rows if chunk else 1, seen)
        self.mask = [np.zeros(shape, np.float32) for _ in slots]
        caches = [
            array[slot]
            for i in range(0, len(self.pairs), 2)
            for slot in slots
            for array in self.pairs[i : i + 2]
        ]
        scattered = [array[slot] for array in self.pairs for slot in slots]
        self.out = np.zeros((rows, width), np.float32)
        shapes = [(rows, array.shape[1], array.shape[3]) for array in self.pairs]
        fresh = [] if self.reads else [np.zeros(shape, np.float32) for shape in shapes]
        inputs = [self.state, *([self.depth] if self.has_depth else []), self.cos, self.sin]
        if kind != "fill":
            inputs += [*self.mask, *caches]
        outputs = fresh if kind == "fill" else [self.out, *fresh]
        self.plan = bridge.plan(name, inputs, outputs, scattered, len(slots), fresh)
        # What the inputs say now: from one token to the next little of it changes.
        self._depths: list[int] = []
        self._shown = -1

    def run(self, state: F32, depth: I64, positions: I64, cached: I32) -> F32:
        """state [n, D] at ``depth``, ``positions`` [n], each behind ``cached`` [n] tokens of its lane → [n, D]."""
        n = len(state)
        self.state[:n] = state
        if self.has_depth and (depths := depth.tolist()) != self._depths:
            self._depths = depths
            self.depth.fill(0)
            self.depth[np.arange(n), depth] = 1
        where = positions if n > 1 else int(positions[0])  # a single one is found twice as fast
        self.cos[:n, 0] = self._cos[where]
        self.sin[:n, 0] = self._sin[where]
        at, kept = self._rows(cached)
        if self.kind != "fill":
            self._show(at, n)
        self.plan.at[:n] = at
        self.bridge.run(self.plan, n)
        for slot, (rows, surplus) in kept.items():
            if surplus:
                self._move(slot, surplus, rows - surplus)
        return self.out[:n]

    def _rows(self, cached: I32) -> tuple[I32, dict[int, tuple[int, int]]]:
        """Rows of the caches that the new tokens get, and by slot (rows in use then, those that leave afterwards)."""
        if self.window is None:
            return cached, {}
        at, kept = np.zeros_like(cached), {}
        owners = self.slots * len(cached) if self.chunk else self.slots
        for slot in self.slots:
            mine = [i for i in range(len(cached)) if owners[i] == slot]
            total = int(cached[mine[-1]]) + 1
            held = resident(int(cached[mine[0]]), self.most_rows, self.window)
            room = self.most_rows - len(mine)
            if held > room:  # the oldest go, all of which lie behind the window
                self._move(slot, held - room, room)
                held = room
            at[mine] = held + np.arange(len(mine))
            used = held + len(mine)
            kept[slot] = (used, used - resident(total, self.most_rows, self.window))
        return at, kept

    def _move(self, slot: int, start: int, count: int) -> None:
        for array in self.pairs:
            array[slot, :, :count] = array[slot, :, start : start + count].copy()

    def _show(self, at: I32, n: int) -> None:
        if self.chunk:
            self._show_chunk(at, n)
        elif n > 1 or self.window:
            self._show_rows(at, n)
        else:
            self._show_row(int(at[0]))

    def _show_row(self, at: int) -> None:
        """A single row sees itself and the ``at`` rows before it: mostly one more than the last time."""
        seen, before = self.mask[0][0, 0], self._shown
        first, end = (0, at + 1) if self.reads else (1, at + 1)
        if before < 0:
            seen[first:] = HIDDEN
            before = first
        if end < before:
            seen[end:before] = HIDDEN
        else:
            seen[before:end] = 0
        self._shown = end

    def _show_rows(self, at: I32, n: int) -> None:
        """Each row sees what its cache holds, and of the new rows of its own lane those up to itself."""
        for i, mask in enumerate(self.mask):
            slot, last, seen = self.slots[i], int(at[i]), mask[0, 0]
            low = max(0, last + 1 - self.window) if self.window else 0
            seen.fill(HIDDEN)
            if self.reads:
                seen[low : last + 1] = 0
                continue
            own = [j for j in range(i + 1) if self.slots[j] == slot]
            seen[n + low : n + int(at[own[0]])] = 0
            seen[[j for j in own if at[j] >= low]] = 0

    def _show_chunk(self, at: I32, n: int) -> None:
        """The same for rows that are all of one lane."""
        rows = len(self.state)
        columns = np.arange(self.cache_rows)
        if not self.reads:  # new rows come first, and padding is behind every other
            columns = np.concatenate((np.append(at, np.full(rows - n, self.most_rows)), columns))
        seen = columns <= at[:, None]
        if not self.reads:
            seen[:, rows:] &= columns[rows:] < at[0]
        if self.window:
            seen &= columns > at[:, None] - self.window
        mask = self.mask[0][0]
        mask.fill(HIDDEN)
        mask[:n][seen] = 0
