"""K/V in the lane engine: a session of the library, which takes memory as its slots fill up."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ...model.program import STAGES, CacheShape, Program
from ...model.sizes import kept_sizes
from ..kv import F32, KVCache, LayerRows, int4_sizes, row_sizes
from .alone import Alone
from .library import Calls, Kv, SessionOptions, Stage, Stats, library

_TYPES: dict[Kv, npt.DTypeLike] = {Kv.F32: np.float32, Kv.F16: np.float16, Kv.I8: np.int8, Kv.I4: np.uint8}
BLOCK = 16
"""Tokens of a block of K/V (src/cache.h)."""
_BEHIND_WINDOW = 128 + 128 + 2 * BLOCK
"""Rows beside a window that a slot has at most: those that are kept, those of a pass, and what is begun of blocks."""


class Model:
    """An opened file; closed with the last session."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
        self.close = finalize(self, library().el_close, pointer)


class NativeSession:
    """A session of the library, and what it is called with."""

    def __init__(self, model: Model, program: Program, options: SessionOptions) -> None:
        self.alone = Alone()
        """Held while it is called."""
        self.model, self.program, self.kv = model, program, Kv(options.kv)
        self.calls = Calls()
        made = ctypes.c_void_p()
        self.calls("el_session_new", model.pointer, ctypes.byref(options), ctypes.byref(made))
        self.pointer = made.value
        self._free = finalize(self, library().el_session_free, self.pointer)

    def close(self) -> None:
        """Give its memory back. Twice is fine."""
        with self.alone:
            self.pointer = None
            self._free()

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call ``name`` of the library; UsageError when the engine was closed."""
        with self.alone:
            if self.pointer is None:
                raise UsageError("the engine is closed; open the bundle again")
            self.calls(name, self.pointer, *arguments)

    def copy(
        self, stage: str, slot: int, source: NativeSession, source_slot: int, first: int, count: int
    ) -> None:
        """Make rows ``first`` … of a slot those of another one: el_copy, a call of both sessions."""
        with ExitStack() as alone:
            for each in sorted({self, source}, key=id):
                alone.enter_context(each.alone)
            if self.pointer is None or source.pointer is None:
                raise UsageError("the engine is closed; open the bundle again")
            where = Stage[stage.upper()], slot, first
            self.calls("el_copy", self.pointer, *where, source.pointer, source_slot, first, count)

    def stats(self) -> Stats:
        """What it costs."""
        found = Stats()
        self("el_session_stats", ctypes.byref(found))
        return found

    def shapes(self, stage: str) -> tuple[CacheShape, ...]:
        """The caches of ``stage``."""
        return self.program.caches(stage)

    def rows(self, stage: str, count: int) -> npt.NDArray[Any]:
        """Room for ``count`` rows of a slot of ``stage``: [count], with fields as el_row_bytes describes them."""
        fields: list[tuple[str, npt.DTypeLike, tuple[int, ...]]] = []
        for i, shape in enumerate(self.shapes(stage)):
            numbers, scales = int4_sizes(shape.head_dim) if self.kv == Kv.I4 else (shape.head_dim, 0)
            fields += [(f"{i} {side}", _TYPES[self.kv], (shape.kv_heads, numbers)) for side in "kv"]
            if self.kv == Kv.I8:
                fields += [(f"{i} scales of {side}", np.float32, (shape.kv_heads,)) for side in "kv"]
            if self.kv == Kv.I4:
                fields += [(f"{i} scales of {side}", np.float16, (shape.kv_heads, scales)) for side in "kv"]
        return np.zeros(count, np.dtype(fields))


@dataclass(frozen=True, eq=False)
class NativeCache(KVCache):
    """A KVCache whose rows are in sessions of the library, by stage; usually the same for all."""

    sessions: dict[str, NativeSession] = field(default_factory=dict)

    @staticmethod
    def of(session: NativeSession, capacity: int, slots: int) -> NativeCache:
        """The cache of a new session."""
        program, sessions = session.program, dict.fromkeys(STAGES, session)
        return NativeCache(
            {}, capacity, capacity, slots, program.window, row_sizes(program), sessions=sessions
        )

    def reserve(self, tokens: int) -> None:
        """Nothing to do: memory is taken as slots fill up."""

    def rows_in(self, tokens: int) -> int:
        """All of ``tokens``: rows are called by their tokens here, also behind a window."""
        return tokens

    def read_last(self, stage: str, slot: int, tokens: int) -> list[F32]:
        """The rows [D] that ``Shift`` keeps of a slot after its first ``tokens`` tokens; [] where there are none."""
        session, sizes = self.sessions[stage], self._kept(stage)
        rows, newest = np.zeros(sum(sizes), np.float32), ctypes.c_uint32()
        if sizes:
            session("el_read_kept", Stage[stage.upper()], slot, ctypes.byref(newest), rows.ctypes.data)
        found = np.split(rows, np.cumsum(sizes)[:-1]) if tokens and newest.value == tokens else []
        return [row.copy() for row in found]

    def write_last(self, stage: str, slot: int, tokens: int, rows: Sequence[F32]) -> None:
        """Make ``rows`` those that ``read_last`` gives."""
        sizes = self._kept(stage)
        if sizes:
            flat = np.concatenate(rows) if rows else np.zeros(sum(sizes), np.float32)
            self.sessions[stage]("el_write_kept", Stage[stage.upper()], slot, tokens, flat.ctypes.data)

    def copy_last(self, stage: str, slot: int, source_slot: int, cached: int, tokens: int) -> None:
        """Keep for ``slot`` what ``Shift`` keeps of another after ``tokens`` tokens."""
        if rows := self.read_last(stage, source_slot, tokens):
            self.write_last(stage, slot, tokens, rows)

    def _kept(self, stage: str) -> list[int]:
        """The sizes of the rows that ``Shift`` keeps."""
        return kept_sizes(self.sessions[stage].program, stage)

    def read_rows(self, stage: str, slot: int, first: int, count: int) -> list[LayerRows]:
        """Rows ``first`` … of a slot of ``stage``: K and V [K heads, count, head_dim] of each layer, copies."""
        session = self.sessions[stage]
        rows = session.rows(stage, count)
        if rows.nbytes:
            session("el_read_rows", Stage[stage.upper()], slot, first, count, rows.ctypes.data)
        sides = [rows[name].swapaxes(0, 1) for name in rows.dtype.names or ()]
        if session.kv == Kv.F16:
            sides = [side.astype(np.float32) for side in sides]
        each = 4 if session.kv in (Kv.I8, Kv.I4) else 2
        return [tuple(sides[at : at + each]) for at in range(0, len(sides), each)]

    def write_rows(self, stage: str, slot: int, first: int, rows: Sequence[LayerRows]) -> None:
        """Put ``rows``, as ``read_rows`` gives them, into the slot from row ``first`` on."""
        session, count = self.sessions[stage], rows[0][0].shape[1] if rows else 0
        if not count:
            return
        flat = session.rows(stage, count)
        sides = (side for layer in rows for side in layer)
        for name, side in zip(flat.dtype.names or (), sides, strict=True):
            flat[name] = side.swapaxes(0, 1)
        session("el_write_rows", Stage[stage.upper()], slot, first, count, flat.ctypes.data)

    def copy_rows(
        self, stage: str, slot: int, source: KVCache, source_slot: int, first: int, count: int
    ) -> None:
        """Copy rows ``first`` … of a slot of ``source``, a cache of the same engine, to the same rows of ``slot``.

        From row 0 on both share the memory, until one of them is written to.
        """
        assert isinstance(source, NativeCache)
        if count:
            self.sessions[stage].copy(stage, slot, source.sessions[stage], source_slot, first, count)

    def with_block_of(self, other: KVCache) -> NativeCache:
        """These caches, but those of the block are ``other``'s: nothing is copied."""
        assert isinstance(other, NativeCache)
        sessions = {**self.sessions, "block": other.sessions["block"]}
        return replace(self, sessions=sessions, slots=other.slots)

    def can_truncate(self, cached: int, tokens: int) -> bool:
        """Return whether a slot of ``cached`` tokens still holds what it held at ``tokens``."""
        if tokens in (0, cached):
            return True
        session = self.sessions["block"]
        return not any(map(self._kept, STAGES)) and bool(
            library().el_can_truncate(session.pointer, cached, tokens)
        )

    def used_bytes(self, cached: int, filled: Sequence[int]) -> int:
        """Bytes of K/V that a sequence of ``cached`` tokens holds, ``filled`` [depth] of them at each depth."""
        total = 0
        for stage, session in self.sessions.items():
            tokens = filled[-self.slots :] if stage == "block" else [cached]
            for shape in session.shapes(stage):
                row = 2 * shape.kv_heads * _head_bytes(session.kv, shape.head_dim)
                total += row * sum(min(count, shape.window or count) for count in tokens)
        return total

    @property
    def grows(self) -> bool:
        """Yes."""
        return True

    def bytes_of(self, tokens: int) -> int:
        """Bytes at most that a sequence of ``tokens`` tokens takes: blocks, and what a window leaves a while."""
        return self._bytes_of(-(-tokens // BLOCK) * BLOCK)

    def bytes_of_whole(self, tokens: int) -> int:
        """Of ``bytes_of``, blocks that are full."""
        return self._bytes_of(tokens // BLOCK * BLOCK)

    def _bytes_of(self, tokens: int) -> int:
        total = 0
        for stage, session in self.sessions.items():
            slots = self.slots if stage == "block" else 1
            for shape in session.shapes(stage):
                rows = min(tokens, (shape.window or tokens) + _BEHIND_WINDOW)
                total += slots * rows * 2 * shape.kv_heads * _head_bytes(session.kv, shape.head_dim)
        return total

    def trim(self, sequence: int, cached: int, filled: Sequence[int]) -> None:
        """Give back the blocks behind what the sequence holds."""
        for stage, slot, tokens in self.held(sequence, cached, filled):
            self.sessions[stage]("el_trim", Stage[stage.upper()], slot, tokens)

    @property
    def number_bits(self) -> int:
        """Of a number of K/V; 8 and 4: of codes with scales."""
        kv = self.sessions["block"].kv
        return 4 if kv == Kv.I4 else 8 * np.dtype(_TYPES[kv]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that are taken now, what slots share once; more are when slots fill up."""
        return sum(int(each.stats().kv_bytes) for each in set(self.sessions.values()))

    @property
    def shared_bytes(self) -> int:
        """Of ``nbytes``, what other caches share: a fork's, of all that neither has written since."""
        return sum(int(each.stats().shared_bytes) for each in set(self.sessions.values()))


def _head_bytes(kv: Kv, head_dim: int) -> int:
    """Bytes of k, or of v, of a token and a head in a block; codes are filled up, and have scales."""
    if kv == Kv.I4:
        codes, scales = int4_sizes(head_dim)
        return codes + 2 * scales
    return -(-head_dim // 16) * 16 + 4 if kv == Kv.I8 else head_dim * np.dtype(_TYPES[kv]).itemsize
