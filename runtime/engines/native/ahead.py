"""Tokens that a decoder of the lane engine has run before they are requested.

A call costs the host as much as it costs anybody who calls a library from Python, and a token of a small model is over
in a tenth of a millisecond. So as many tokens as are run within ``BURST_NS`` share a call, which nobody can see: they
are those that will be requested, unless the caller goes back, which takes them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Array, byref, c_char, c_int64, c_uint32, sizeof
from time import perf_counter_ns
from typing import Any

from ...model.program import STAGES, Program
from ...model.sizes import kept_sizes
from .library import ERROR_SIZE, failure

BURST_NS = 4_000_000
"""Nobody sees that a token comes so much later: it is a quarter of a frame of a screen."""
MOST = 32
"""Tokens of a call."""


class Ahead:
    """The calls of el_decoder_next of one decoder that choose tokens, and what they made."""

    def __init__(self, call: Callable[..., int], program: Program) -> None:
        """``call``: el_decoder_next of the decoder, with what comes behind it."""
        self._call = call
        self._may = may_run_ahead(program)
        self._tokens, self._depths = (c_int64 * MOST)(), (c_uint32 * MOST)()
        self._made = c_uint32()
        self._error: Array[c_char] = (c_char * ERROR_SIZE)()
        self._out = byref(self._tokens), byref(self._depths), byref(self._made), self._error
        self._ends: Any = None
        self._room, self._burst = 1, 1
        self._at = self._count = 0  # the next token of the last call, and how many that made
        self._failed: tuple[int, str] | None = None

    def begin(self, ends: Sequence[int], room: int) -> None:
        """At most ``room`` tokens will be wanted from now on, and none behind one of ``ends``."""
        self._ends = (c_int64 * len(ends))(*ends)
        self._room = room

    @property
    def behind(self) -> int:
        """Tokens that were run and not requested yet."""
        return self._count - self._at

    def forget(self) -> None:
        """The tokens behind were taken back."""
        self._at = self._count = 0
        self._failed = None

    def goes_on(self, token: int) -> bool:
        """Return whether there is a next token, behind ``token``."""
        return 0 < self._at < self._count and self._tokens[self._at - 1] == token

    def take(self) -> tuple[int, int]:
        """Return the next token, and the depths that the one before it ran."""
        at, self._at = self._at, self._at + 1
        return self._tokens[at], self._depths[at]

    def run(self, token: int) -> int:
        """Run ``token`` and perhaps some that follow → how many; nothing may be behind."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failure(*failed)
        count = max(1, min(self._room, self._burst)) if self._may else 1
        begin = perf_counter_ns()
        code = self._call(token, self._ends, sizeof(self._ends) // 8 if self._ends else 0, count, *self._out)
        made = self._made.value
        if code:
            failed = code, self._error.value.decode(errors="replace")
            if not made:
                raise failure(*failed)
            self._failed = failed  # once those that were made are taken
        self._at, self._count = 0, made
        self._room -= made
        self._burst = burst(made, perf_counter_ns() - begin)
        return made


def may_run_ahead(program: Program) -> bool:
    """Return whether tokens can be taken back: one that moved a window cannot, nor one whose row is kept in place of
    that before."""
    windows = any(shape.window for stage in STAGES for shape in program.caches(stage))
    return not windows and not any(kept_sizes(program, stage) for stage in STAGES)


def burst(made: int, ns: int) -> int:
    """Return how many tokens a call may have where one of ``made`` took ``ns`` nanoseconds."""
    return min(MOST, max(1, BURST_NS * made // max(1, ns)))
