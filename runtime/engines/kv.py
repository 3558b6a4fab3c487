"""KV caches: preallocated once, written in place, truncated by a length.

A cache belongs to one layer of one stage's graph and is K, V [slots, K heads, rows, head_dim] float32.
The block has as many slots a sequence as depths that keep K and V of their own, the prologue and epilogue one.
All caches of a sequence lie in one piece of memory, so choose the capacity no larger than what is needed.

Row i of a slot is token i of the sequence, unless the model sees a sliding window of W tokens: then a slot has no
more than W + ``SLACK`` rows, the first ``rows_kept`` of them hold the most recent tokens in order, and the engine
makes room itself (onnxruntime docs/ContribOperators.md, GroupQueryAttention, "Windowed KV Cache").
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..model.program import STAGES, Program

F32 = npt.NDArray[np.float32]
SLACK = 128
"""Rows beside the window: old tokens are moved out once in this many steps, not in each."""


@dataclass(frozen=True, eq=False)
class KVCache:
    """``stages[name]`` is a list of (K, V), one pair a layer of that stage's graph.

    ``capacity``: tokens that a sequence may have. ``rows``: those that a slot holds at once. ``slots``: slots of a
    sequence in the block's caches. ``window``: the sliding window, or None.
    """

    stages: dict[str, list[tuple[F32, F32]]]
    capacity: int
    rows: int
    slots: int
    window: int | None
    last_rows: dict[tuple[str, int], tuple[int, dict[int, F32]]] = field(default_factory=dict)
    """By stage and slot: after how many tokens, and the last row of each Shift by its number."""

    @staticmethod
    def allocate(program: Program, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Zeroed caches for ``sequences`` × ``capacity`` tokens.

        ``slots``: slots of a sequence in the block's caches, by default one for each depth with K and V of its own.
        With fewer, the deepest depths write and read the same one. UsageError when the model has not so many.
        """
        slots = program.kv_slots if slots is None else slots
        if not 1 <= slots <= program.kv_slots:
            raise UsageError(
                f"{slots} KV slots a sequence, wanted 1 to {program.kv_slots}, which the model has"
            )
        window = program.window
        rows = capacity if window is None else max(window, min(capacity, window + SLACK))
        shapes = {
            stage: [
                (sequences * (slots if stage == "block" else 1), c.kv_heads, rows, c.head_dim)
                for c in program.caches(stage)
            ]
            for stage in STAGES
        }
        arena = _zeros(sum(2 * prod(shape) for layers in shapes.values() for shape in layers))
        start = 0
        stages: dict[str, list[tuple[F32, F32]]] = {}
        for stage, layers in shapes.items():
            arrays = []
            for shape in (shape for shape in layers for _ in range(2)):
                arrays.append(arena[start : start + prod(shape)].reshape(shape))
                start += prod(shape)
            stages[stage] = list(zip(arrays[::2], arrays[1::2], strict=True))
        return KVCache(stages, capacity, rows, slots, window)

    def reserve(self, tokens: int) -> None:
        """Room for a sequence of ``tokens`` tokens, in caches that take it as they need it."""
        for pairs in self.stages.values():
            if isinstance(pairs, GrowingPairs):
                pairs.reserve(min(tokens, self.rows))

    def slot(self, stage: str, sequence: int, depth: int) -> int:
        """The slot of ``sequence`` at ``depth`` in the caches of ``stage``."""
        return sequence * self.slots + min(depth, self.slots - 1) if stage == "block" else sequence

    def can_truncate(self, cached: int, tokens: int) -> bool:
        """Does a slot of ``cached`` tokens still hold what it held at ``tokens``? Always, without a window."""
        if tokens == 0:
            return True
        kept = rows_kept(cached, self.rows, self.window) - (cached - tokens)
        return kept == rows_kept(tokens, self.rows, self.window)

    def read_rows(self, stage: str, slot: int, first: int, count: int) -> list[tuple[F32, F32]]:
        """Rows ``first`` … of a slot of ``stage``: K and V [K heads, count, head_dim] of each layer, copies."""
        rows = slice(first, first + count)
        return [(k[slot, :, rows].copy(), v[slot, :, rows].copy()) for k, v in self._pairs(stage, rows.stop)]

    def write_rows(self, stage: str, slot: int, first: int, rows: Sequence[tuple[F32, F32]]) -> None:
        """Put ``rows``, as ``read_rows`` gives them, into the slot from row ``first`` on."""
        end = first + max((new.shape[1] for new, _ in rows), default=0)
        for pair, new in zip(self._pairs(stage, end), rows, strict=True):
            for array, values in zip(pair, new, strict=True):
                array[slot, :, first:end] = values

    def copy_rows(
        self, stage: str, slot: int, source: KVCache, source_slot: int, first: int, count: int
    ) -> None:
        """Copy rows ``first`` … of a slot of ``source``, a cache of the same engine, to the same rows of ``slot``."""
        rows = slice(first, first + count)
        pairs = zip(self._pairs(stage, rows.stop), source._pairs(stage, rows.stop), strict=True)
        for ours, theirs in pairs:
            for to, of in zip(ours, theirs, strict=True):
                to[slot, :, rows] = of[source_slot, :, rows]

    def with_block_of(self, other: KVCache) -> KVCache:
        """These caches, but those of the block are ``other``'s: nothing is copied."""
        stages = {**self.stages, "block": other.stages["block"]}
        return replace(self, stages=stages, slots=other.slots)

    def _pairs(self, stage: str, rows: int) -> list[tuple[F32, F32]]:
        """The arrays of ``stage``, with room for ``rows`` rows."""
        pairs = self.stages[stage]
        if isinstance(pairs, GrowingPairs):
            pairs.reserve(min(rows, self.rows))
        return pairs

    def used_bytes(self, cached: int, filled: Sequence[int]) -> int:
        """Bytes of K and V that a sequence of ``cached`` tokens holds, ``filled`` [depth] of them at each depth."""
        total = 0
        for stage, pairs in self.stages.items():
            row = sum(array[0, :, 0].nbytes for pair in pairs for array in pair)
            tokens = filled[-self.slots :] if stage == "block" else [cached]
            total += row * sum(rows_kept(count, self.rows, self.window) for count in tokens)
        return total

    @property
    def nbytes(self) -> int:
        """Bytes reserved: what is used when every slot is full."""
        return sum(k.nbytes + v.nbytes for pairs in self.stages.values() for k, v in pairs)


class GrowingPairs(list[tuple[F32, F32]]):
    """(K, V) of a stage that are laid out for no more rows than are needed, for engines that read all of them.

    Each array [slots, K, c, hd] lies at the beginning of its slots' memory; when c grows, heads move apart.
    """

    def __init__(self, whole: list[tuple[F32, F32]], step: int = 64) -> None:
        """``whole``: contiguous arrays [slots, K, C, hd]. ``step``: c is a multiple of it, or C."""
        self._whole, self._step = whole, step
        super().__init__(whole)
        self._lay_out(step)

    def reserve(self, rows: int) -> None:
        """c is at least ``rows`` afterwards; the arrays are new views if it was not before."""
        if not self or rows <= self[0][0].shape[2]:
            return
        step = max(self._step, 1 << rows.bit_length() - 3)  # long caches in longer steps
        old = list(self)
        self._lay_out(-(-rows // step) * step)
        for before, after in zip(old, self, strict=True):
            for source, goal in zip(before, after, strict=True):
                for head in reversed(range(1, source.shape[1])):  # upwards, so the last one first
                    goal[:, head, : source.shape[2]] = source[:, head]

    def _lay_out(self, rows: int) -> None:
        def view(whole: F32) -> F32:
            slots, heads, most, width = whole.shape
            c = min(rows, most)
            return whole.reshape(slots, -1)[:, : heads * c * width].reshape(slots, heads, c, width)

        self[:] = [(view(key), view(value)) for key, value in self._whole]


def rows_kept(tokens: int, rows: int, window: int | None) -> int:
    """How many of a slot's ``tokens`` tokens, the most recent ones, lie in its rows."""
    if window is None or tokens <= rows:
        return tokens
    step = rows - window + 1
    return tokens - step * -(-(tokens - rows) // step)


def _zeros(size: int) -> F32:
    """Zeros [size] in huge pages where the system has them.

    Decoding reads a few rows of hundreds of (layer, head) pairs: in small pages each costs a page walk, which
    is some 5% of a token (edgeloop compare).
    """
    memory = mmap.mmap(-1, max(4 * size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32, count=size)
