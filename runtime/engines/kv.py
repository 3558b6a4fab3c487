"""KV caches: preallocated once, written in place, truncated by a length.

A cache belongs to one layer of one stage's graph and is K, V [slots, K heads, rows, head_dim] float32.
The block has as many slots a sequence as depths that keep K/V of their own, the prologue and epilogue one.
All caches of a sequence lie in one piece of memory, so choose the capacity no larger than what is needed.

Row i of a slot is token i of the sequence, unless the model sees a sliding window of W tokens and depths have K/V
of their own: then a slot has no more than W + ``SLACK`` rows, the first ``rows_kept`` of them hold the most recent
tokens in order, and the engine makes room itself (onnxruntime docs/ContribOperators.md, GroupQueryAttention, "Windowed
KV Cache").

Rows are copied, read and written by ``KVCache``'s methods, whoever wants that: an engine whose K/V lie elsewhere
has a subclass that answers them, and leaves ``stages`` empty.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..model.program import STAGES, Program

F32 = npt.NDArray[np.float32]
LayerRows = tuple[npt.NDArray[Any], ...]
"""Of a layer: K and V [K heads, rows, head_dim]; where they are int8 codes, their scales [K heads, rows], too. In 4
bits [K heads, rows, bytes] and [K heads, rows, scales] (``int4_sizes``)."""
SLACK = 128
"""Rows beside the window: old tokens are moved out once in this many steps, not in each."""
TAKEN_BACK = 64
"""Tokens of a slot of which ``Shift``'s rows are kept: drafts are never as many."""


@dataclass(frozen=True, eq=False)
class KVCache:
    """``stages[name]`` is a list of (K, V), one pair a layer of that stage's graph.

    ``capacity``: tokens that a sequence may have. ``rows``: those that a slot holds at once. ``slots``: slots of a
    sequence in the block's caches. ``window``: the sliding window that its rows move with, or None. ``row_sizes``: by
    stage, the numbers of a row of one slot, K/V of all its caches.
    """

    stages: dict[str, list[tuple[F32, F32]]]
    capacity: int
    rows: int
    slots: int
    window: int | None
    row_sizes: dict[str, int]
    last_rows: dict[tuple[str, int], tuple[int, dict[int, F32]]] = field(default_factory=dict)
    """By stage and slot: after how many tokens, and the last row of each Shift by its number."""
    earlier_rows: dict[tuple[str, int], dict[int, dict[int, F32]]] = field(default_factory=dict)
    """The same after fewer tokens: once drafts are taken back, a token goes on from there."""

    @staticmethod
    def allocate(program: Program, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Zeroed caches for ``sequences`` × ``capacity`` tokens.

        ``slots``: slots of a sequence in the block's caches, by default one for each depth with K/V of its own.
        With fewer, depths take them in turn. UsageError when the model has not so many.
        """
        slots = program.kv_slots if slots is None else slots
        if not 1 <= slots <= program.kv_slots:
            raise UsageError(
                f"{slots} KV slots a sequence, wanted 1 to {program.kv_slots}, which the model has"
            )
        window = program.moving_window
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
        return KVCache(stages, capacity, rows, slots, window, row_sizes(program))

    def reserve(self, tokens: int) -> None:
        """Room for a sequence of ``tokens`` tokens, in caches that take it as they need it."""
        for pairs in self.stages.values():
            if isinstance(pairs, GrowingPairs):
                pairs.reserve(min(tokens, self.rows))

    def slot(self, stage: str, sequence: int, depth: int) -> int:
        """The slot of ``sequence`` at ``depth`` in the caches of ``stage``."""
        return sequence * self.slots + depth % self.slots if stage == "block" else sequence

    def can_truncate(self, cached: int, tokens: int) -> bool:
        """Return whether a slot of ``cached`` tokens still holds what it held at ``tokens``.

        Always, without a window that has moved on and without a row that ``Shift`` keeps.
        """
        if tokens in (0, cached):
            return True
        kept = self.rows_in(cached) - (cached - tokens)
        return kept == self.rows_in(tokens) and not self.last_rows

    def rows_in(self, tokens: int) -> int:
        """Rows of a slot of ``tokens`` tokens: of the most recent ones, in order."""
        return rows_kept(tokens, self.rows, self.window)

    def held(self, sequence: int, cached: int, filled: Sequence[int]) -> list[tuple[str, int, int]]:
        """(stage, slot, tokens) of every slot of a sequence of ``cached`` tokens, ``filled`` [depth] at each depth."""
        block = enumerate(filled[-self.slots :], sequence * self.slots)
        looped = [("block", slot, tokens) for slot, tokens in block]
        return [("prologue", sequence, cached), *looped, ("epilogue", sequence, cached)]

    def copy_sequence(
        self, sequence: int, source: KVCache, source_sequence: int, cached: int, filled: Sequence[int]
    ) -> None:
        """Copy a sequence of ``cached`` tokens, ``filled`` [depth] at each depth, from a cache of the same engine.

        That has as many slots a sequence, and as long ones where a window has moved on.
        """
        for (stage, slot, tokens), (_, source_slot, _) in zip(
            self.held(sequence, cached, filled), source.held(source_sequence, cached, filled), strict=True
        ):
            self.copy_rows(stage, slot, source, source_slot, 0, source.rows_in(tokens))
            self.write_last(stage, slot, tokens, source.read_last(stage, source_slot, tokens))

    def rows_after(self, stage: str, slot: int, tokens: int) -> dict[int, F32] | None:
        """The rows that ``Shift`` keeps of a slot after its first ``tokens`` tokens; None where nobody knows them."""
        newest, rows = self.last_rows.get((stage, slot), (tokens, {}))
        return rows if newest == tokens else self.earlier_rows.get((stage, slot), {}).get(tokens)

    def keep_rows(self, stage: str, slot: int, cached: int, tokens: int, rows: dict[int, F32]) -> None:
        """A call behind ``cached`` tokens left ``rows`` after ``tokens``; those of other tokens there are forgotten."""
        newest, old = self.last_rows.get((stage, slot), (0, {}))
        known = {**self.earlier_rows.get((stage, slot), {}), newest: old}
        self.earlier_rows[stage, slot] = {n: known[n] for n in known if tokens - TAKEN_BACK <= n <= cached}
        self.last_rows[stage, slot] = tokens, rows

    def read_last(self, stage: str, slot: int, tokens: int) -> list[F32]:
        """The rows [D] that ``Shift`` keeps of a slot after its first ``tokens`` tokens; [] where there are none."""
        rows = self.rows_after(stage, slot, tokens) or {}
        return [rows[number].reshape(-1).copy() for number in sorted(rows)]

    def write_last(self, stage: str, slot: int, tokens: int, rows: Sequence[F32]) -> None:
        """Make ``rows`` those that ``read_last`` gives."""
        self.last_rows.pop((stage, slot), None)
        self.earlier_rows.pop((stage, slot), None)
        if rows:
            self.last_rows[stage, slot] = tokens, {i: row.reshape(1, -1).copy() for i, row in enumerate(rows)}

    def copy_last(self, stage: str, slot: int, source_slot: int, cached: int, tokens: int) -> None:
        """Keep behind ``cached`` tokens of ``slot`` what ``Shift`` keeps of another slot after ``tokens``."""
        if rows := self.rows_after(stage, source_slot, tokens):
            self.keep_rows(stage, slot, cached, tokens, dict(rows))

    def read_rows(self, stage: str, slot: int, first: int, count: int) -> list[LayerRows]:
        """Rows ``first`` … of a slot of ``stage``: K and V [K heads, count, head_dim] of each layer, copies."""
        rows = slice(first, first + count)
        return [(k[slot, :, rows].copy(), v[slot, :, rows].copy()) for k, v in self._pairs(stage, rows.stop)]

    def write_rows(self, stage: str, slot: int, first: int, rows: Sequence[LayerRows]) -> None:
        """Put ``rows``, as ``read_rows`` gives them, into the slot from row ``first`` on."""
        end = first + max((new[0].shape[1] for new in rows), default=0)
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
        """Bytes of K/V that a sequence of ``cached`` tokens holds, ``filled`` [depth] of them at each depth."""
        return sum(
            self.number_bits // 8 * self.row_sizes[stage] * self.rows_in(tokens)
            for stage, _, tokens in self.held(0, cached, filled)
        )

    @property
    def grows(self) -> bool:
        """Whether memory is taken as slots fill up; else all of it is taken from the beginning."""
        return False

    def bytes_of(self, tokens: int) -> int:
        """Bytes at most that a sequence of ``tokens`` tokens takes, at every depth."""
        return self.used_bytes(tokens, [tokens] * self.slots)

    def bytes_of_whole(self, tokens: int) -> int:
        """Of ``bytes_of``, those that are not written any more when tokens follow."""
        return self.bytes_of(tokens)

    def trim(self, sequence: int, cached: int, filled: Sequence[int]) -> None:
        """Give back what a sequence takes behind ``cached`` tokens, ``filled`` [depth] at each depth, where memory is
        taken as slots fill up."""

    @property
    def number_bits(self) -> int:
        """Of a number of K/V; 8 and 4: of codes with scales."""
        return 32

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


def int4_sizes(head_dim: int) -> tuple[int, int]:
    """Return bytes of codes, filled up to 32 of them, and scales, one for 16, of a head's k of a token in 4 bits."""
    dims = -(-head_dim // 32) * 32
    return dims // 2, dims // 16


def row_sizes(program: Program) -> dict[str, int]:
    """Numbers of a row of one slot by stage, K/V of all its caches."""
    return {stage: sum(2 * c.kv_heads * c.head_dim for c in program.caches(stage)) for stage in STAGES}


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
