"""Whole tokens of many sequences in the lane engine: one call of the library runs one of each, or several."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int64, c_uint32, c_uint64
from time import perf_counter_ns
from typing import Any
from weakref import finalize

import numpy as np

from ...errors import UsageError
from ..tokens import F32, Chooser, Turn, Turned
from .ahead import MOST, burst, may_run_ahead
from .cache import NativeSession
from .decoder_structs import Chooses, TurnStruct
from .library import ERROR_SIZE, Code, failure, library

DecoderTurn = tuple[Any, Chooser, tuple[int, ...]]
"""A NativeDecoder, who chooses the token behind its own, and the tokens that nothing is run behind."""


class NativeBatch:
    """A batch of the library (``TokenBatch``), of a session."""

    def __init__(self, session: NativeSession, output: int) -> None:
        """``output``: numbers of a row of logits."""
        self._session, self._output = session, output
        made = ctypes.c_void_p()
        session("el_batch_new", byref(made))
        self._pointer = made.value
        self._free = finalize(self, library().el_batch_free, self._pointer)
        self._lined_up: list[DecoderTurn] = []
        self._turns: Any = (TurnStruct * 0)()
        self._held: list[Any] = []  # what the turns point to
        self._tokens: list[Any] = []
        self._counts = c_uint64(), c_uint64()
        self._may, self._burst = may_run_ahead(session.program), 1
        self.calls = self.rows = 0
        self.ticks = 1

    def next(self, turns: Sequence[Turn], several: bool = False) -> list[Turned]:
        """Run ``turns``. EngineError when the session was stopped."""
        asked: list[DecoderTurn] = [(turn.decoder, turn.chooser, turn.ends) for turn in turns]
        if asked != self._lined_up:
            self._line_up(asked)
        structs = self._turns
        most = min(self._burst, *(turn.room for turn in turns)) if several and self._may and turns else 1
        for struct, turn in zip(structs, turns, strict=True):
            text = turn.text
            struct.most = most
            if text is None:
                struct.token, struct.text = turn.token, None
            else:
                struct.text, struct.text_count = text.ctypes.data, len(text)
        session, (calls, rows) = self._session, self._counts
        begin = perf_counter_ns()
        with session.alone:
            if session.pointer is None:
                raise UsageError("the engine is closed; open the bundle again")
            session.calls("el_batch_next", self._pointer, structs, len(asked), byref(calls), byref(rows))
        self.calls, self.rows = calls.value, rows.value
        self.ticks = max(1, *(struct.made for struct in structs))
        if several:
            self._burst = burst(self.ticks, perf_counter_ns() - begin)
        return [self._turned(*each) for each in zip(structs, self._tokens, strict=True)]

    def _line_up(self, asked: list[DecoderTurn]) -> None:
        """Fill in the structs of the turns: usually of the same decoders as in the call before."""
        self._turns = (TurnStruct * len(asked))()
        self._held, self._tokens = [], []
        for struct, (decoder, chooser, ends) in zip(self._turns, asked, strict=True):
            error, end_ids = ctypes.create_string_buffer(ERROR_SIZE), (c_int64 * len(ends))(*ends)
            tokens, ran = (c_int64 * MOST)(), (c_uint32 * MOST)()
            struct.struct_bytes = ctypes.sizeof(TurnStruct)
            struct.decoder, struct.chooses = decoder.pointer, Chooses[chooser.upper()]
            struct.error = ctypes.cast(error, ctypes.c_char_p)
            struct.ends, struct.ends_count = ctypes.addressof(end_ids), len(ends)
            struct.tokens, struct.ran = ctypes.addressof(tokens), ctypes.addressof(ran)
            self._held.append((error, end_ids))
            self._tokens.append((tokens, ran))
        self._lined_up = asked

    def _turned(self, struct: Any, tokens: tuple[Any, Any]) -> Turned:
        """What became of a turn."""
        if struct.code != Code.OK:
            return Turned(-1, 0, error=failure(struct.code, struct.error.decode(errors="replace")))
        before = struct.made - 1
        earlier = list(zip(tokens[0][:before], tokens[1][:before], strict=True)) if before > 0 else ()
        logits: F32 | None = None
        if struct.logits is not None:  # the host chooses, or there is nothing to choose from
            numbers: Any = (ctypes.c_float * self._output).from_address(struct.logits)
            logits = np.frombuffer(numbers, np.float32).copy()
        return Turned(struct.token, struct.depths, logits, None, earlier)
