"""Whole tokens of many sequences in the lane engine: one call of the library runs one of each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_uint64
from typing import Any
from weakref import finalize

import numpy as np

from ...errors import UsageError
from ..tokens import F32, Chooser, Turn, Turned
from .cache import NativeSession
from .decoder_structs import Chooses, TurnStruct
from .library import ERROR_SIZE, Code, failure, library

DecoderTurn = tuple[Any, Chooser]
"""A NativeDecoder, and who chooses the token behind its own."""


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
        self._errors: list[Any] = []
        self._counts = c_uint64(), c_uint64()
        self.calls = self.rows = 0

    def next(self, turns: Sequence[Turn]) -> list[Turned]:
        """Run ``turns``. EngineError when the session was stopped."""
        asked: list[DecoderTurn] = [(turn.decoder, turn.chooser) for turn in turns]
        if asked != self._lined_up:
            self._line_up(asked)
        structs = self._turns
        for struct, turn in zip(structs, turns, strict=True):
            text = turn.text
            if text is None:
                struct.token, struct.text = turn.token, None
            else:
                struct.text, struct.text_count = text.ctypes.data, len(text)
        session, (calls, rows) = self._session, self._counts
        with session.alone:
            if session.pointer is None:
                raise UsageError("the engine is closed; open the bundle again")
            session.calls("el_batch_next", self._pointer, structs, len(asked), byref(calls), byref(rows))
        self.calls, self.rows = calls.value, rows.value
        return [
            Turned(struct.token, struct.depths)
            if struct.logits is None and struct.code == Code.OK
            else self._special(struct)
            for struct in structs
        ]

    def _line_up(self, asked: list[DecoderTurn]) -> None:
        """Fill in the structs of the turns: usually of the same decoders as in the call before."""
        self._turns = (TurnStruct * len(asked))()
        self._errors = [ctypes.create_string_buffer(ERROR_SIZE) for _ in asked]
        for struct, error, (decoder, chooser) in zip(self._turns, self._errors, asked, strict=True):
            struct.struct_bytes = ctypes.sizeof(TurnStruct)
            struct.decoder, struct.chooses = decoder.pointer, Chooses[chooser.upper()]
            struct.error = ctypes.cast(error, ctypes.c_char_p)
        self._lined_up = asked

    def _special(self, struct: Any) -> Turned:
        """What became of a token that the host chooses the next one of, or that was not run."""
        if struct.code != Code.OK:
            error = failure(struct.code, struct.error.decode(errors="replace"))
            return Turned(-1, 0, error=error)
        numbers: Any = (ctypes.c_float * self._output).from_address(struct.logits)
        logits: F32 = np.frombuffer(numbers, np.float32).copy()
        return Turned(struct.token, struct.depths, logits)
