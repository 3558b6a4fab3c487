"""Whole tokens in the lane engine: one call of the library runs a token through all its depths and chooses the next."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint32
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ..tokens import Choosing, Drafting, DraftReport, TokenCounts, TokenMode, TokenState, WaitingStates
from . import drafts
from .ahead import Ahead
from .cache import NativeSession
from .decoder_structs import CountsStruct, PolicyStruct, Rule, SamplingStruct, SequenceStruct, Skipped, Squash
from .library import ERROR_SIZE, failure, library

F32 = npt.NDArray[np.float32]


class NativeDecoder:
    """A decoder of the library (``TokenDecoder``), of one sequence of a session."""

    def __init__(self, session: NativeSession, sequence: int, mode: TokenMode, output: int) -> None:
        """``output``: numbers of a row of logits."""
        self._session, self._depths, self._width = session, mode.depths, session.program.width
        self._logits = np.zeros((1, output), np.float32)
        self._logits_address = self._logits.ctypes.data
        policy, held = _policy(mode)
        made = ctypes.c_void_p()
        session("el_decoder_new", sequence, byref(policy), byref(made))
        del held  # the library has copied it
        self.pointer = made.value
        self._free = finalize(self, library().el_decoder_free, self.pointer)
        self.depth = 0
        self._error = ctypes.create_string_buffer(ERROR_SIZE)
        self._ran, self._made = c_uint32(), c_uint32()
        self._cached = 0
        """Tokens that were to be run."""
        self._held: int | None = 0
        """Tokens that the library has run; None in a call that runs some, and behind one that was interrupted."""
        next_ = library().el_decoder_next

        def call(token: int, *arguments: Any, pointer: int | None = self.pointer) -> int:
            with session.alone:
                if session.pointer is None:
                    raise _closed()
                code: int = next_(pointer, token, *arguments)
                return code

        self._next, self._ahead = call, Ahead(call, session.program)

    def step(self, token: int) -> F32:
        """Run one more token → its logits [1, V], valid until the next call."""
        self._give()
        run = None, 0, 1, None, byref(self._ran), byref(self._made), self._error
        if code := self._next(token, *run):
            raise failure(code, self._error.value.decode(errors="replace"))
        self.depth = self._ran.value
        self._held = self._cached
        return self.logits

    def choose_by(self, options: Choosing, ends: Sequence[int] = (), room: int = 0) -> None:
        """Let ``next`` choose by these: of at most ``room`` tokens, none of them behind one of ``ends``."""
        self._take_back()
        sampling = sampling_struct(options)
        self._call("el_decoder_sample", byref(sampling))
        self._ahead.begin(ends, room)

    def next(self, token: int) -> int:
        """Run one more token and return the one that is chosen behind it, or ``NO_TOKEN``."""
        ahead = self._ahead
        if ahead.goes_on(token):
            self._cached += 1
        else:
            before = self._give()
            self._held = before + ahead.run(token)
        chosen, self.depth = ahead.take()
        return chosen

    @property
    def cached(self) -> int:
        """Tokens that were run, without those that were not requested yet."""
        if self._held is None:
            self._take_back()
        return self._cached

    def _give(self) -> int:
        """Note that one more token is to be run → how many were before."""
        self._take_back()
        before, self._held = self._cached, None
        self._cached += 1
        return before

    def _take_back(self) -> None:
        """Let the library forget what was run ahead.

        Behind a call that failed or was interrupted, by Ctrl-C say, nobody knows what it has run: the token that it was
        given, if it came to that, is kept, and what it chose itself goes.
        """
        if self._held is None:
            self._held = self._read_sizes()[0].cached
            self._cached = min(self._cached, self._held)
        if self._held > self._cached:
            self._call("el_decoder_truncate", self._cached)
            self._held = self._cached
        self._ahead.forget()

    @property
    def logits(self) -> F32:
        """The logits [1, V] of the last token, valid until the next call."""
        assert not self._ahead.behind
        self._call("el_decoder_logits", self._logits_address)
        return self._logits

    def read(self) -> TokenState:
        """Return what it knows of the sequence."""
        self._take_back()
        given, (filled, held_counts, waiting_counts) = self._read_sizes()
        held = np.zeros(int(held_counts.sum()), np.int64)
        positions = np.zeros(int(waiting_counts.sum()), np.int64)
        states = np.zeros((len(positions), self._width), np.float32)
        if len(held) or len(positions):
            given.held, given.waiting_positions = held.ctypes.data, positions.ctypes.data
            given.waiting = states.ctypes.data
            self._call("el_decoder_read", byref(given))
        ends = np.cumsum(waiting_counts)[:-1]
        waiting = zip(np.split(positions, ends), np.split(states, ends), strict=True)
        return TokenState(
            given.cached,
            tuple(filled.tolist()),
            tuple(np.split(held, np.cumsum(held_counts)[:-1])),
            tuple(WaitingStates(*each) for each in waiting),
        )

    def _read_sizes(self) -> tuple[SequenceStruct, list[npt.NDArray[np.uint32]]]:
        """Return what the library holds, but for positions and states: a struct, and the arrays that it points to."""
        counts = [np.zeros(self._depths, np.uint32) for _ in range(3)]
        filled, held_counts, waiting_counts = (each.ctypes.data for each in counts)
        given = SequenceStruct(
            depths=self._depths,
            width=self._width,
            filled=filled,
            held_counts=held_counts,
            waiting_counts=waiting_counts,
        )
        self._call("el_decoder_read", byref(given))
        return given, counts

    def write(self, state: TokenState) -> None:
        """Go on from ``state``, whose rows the slots hold. UsageError for one of another mode."""
        self._ahead.forget()
        counts = [
            np.array(state.filled, np.uint32),
            np.array([len(each) for each in state.held], np.uint32),
            np.array([len(each.positions) for each in state.waiting], np.uint32),
        ]
        held = np.concatenate([*state.held, np.empty(0, np.int64)]).astype(np.int64)
        positions = np.concatenate([each.positions for each in state.waiting]).astype(np.int64)
        states = np.concatenate([each.states for each in state.waiting]).astype(np.float32)
        filled, held_counts, waiting_counts = (each.ctypes.data for each in counts)
        given = SequenceStruct(
            depths=len(state.filled),
            cached=state.cached,
            width=self._width,
            filled=filled,
            held_counts=held_counts,
            waiting_counts=waiting_counts,
            held=held.ctypes.data,
            waiting_positions=positions.ctypes.data,
            waiting=states.ctypes.data,
        )
        self._call("el_decoder_write", byref(given))
        self._held = self._cached = state.cached

    def counts(self) -> TokenCounts:
        """Return what its tokens took."""
        block_ns, calls = (np.zeros(self._depths, np.uint64) for _ in range(2))
        found = CountsStruct(
            depths=self._depths, block_nanoseconds=block_ns.ctypes.data, depth_calls=calls.ctypes.data
        )
        self._call("el_decoder_counts", byref(found))
        return TokenCounts(
            found.tokens,
            found.nanoseconds,
            found.block_calls,
            found.rows,
            found.decisions,
            found.decide_nanoseconds,
            tuple(block_ns.tolist()),
            tuple(calls.tolist()),
        )

    def draft(self, drafting: Drafting) -> None:
        """Feed tokens before they are final, as ``drafting`` says; the tokens stay the same."""
        self._take_back()
        drafts.draft(self._call, drafting)

    def text(self, ids: npt.ArrayLike) -> None:
        """Look drafts up in the text ids [S], of which the first tokens were run."""
        self._take_back()
        drafts.text(self._call, ids)

    def drafts(self) -> DraftReport:
        """Return what became of drafts, and what was learnt of them."""
        return drafts.report(self._call, self._depths)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call ``name`` of the library with the decoder; UsageError when the engine was closed."""
        with self._session.alone:
            if self._session.pointer is None:
                raise _closed()
            if code := getattr(library(), name)(self.pointer, *arguments, self._error):
                raise failure(code, self._error.value.decode(errors="replace"))


def sampling_struct(options: Choosing) -> SamplingStruct:
    """Return ``options`` as the library takes them. It has 32 bits for top_k: more than there are tokens is all."""
    return SamplingStruct(
        temperature=options.temperature,
        top_k=min(options.top_k, 2**32 - 1),
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
    )


def _policy(mode: TokenMode) -> tuple[PolicyStruct, list[F32]]:
    """Return ``mode`` as the library takes it, and the arrays whose addresses that holds."""
    held: list[F32] = []

    def address(array: npt.ArrayLike | None) -> int | None:
        if array is None:
            return None
        held.append(np.ascontiguousarray(array, np.float32))
        return held[-1].ctypes.data

    router = mode.rule in ("expert", "token")
    prefix = "router" if router else mode.rule
    heads: Mapping[str, F32] = mode.heads
    hidden = heads.get("router.hidden") if router else None
    values: dict[str, Any] = {}
    if router and (routing := mode.routing) is not None:
        values = {
            "squash": Squash[routing.squash.upper()],
            "gated": routing.gated,
            "everyone": mode.everyone,
            "temperature": routing.temperature,
            "alpha": routing.alpha,
            "hidden_count": 0 if hidden is None else hidden.shape[0],
            "hidden_width": 0 if hidden is None else hidden.shape[1],
            "hidden": address(hidden),
            "auxiliary": address(heads.get("auxiliary.weight")),
            "auxiliary_hidden": address(heads.get("auxiliary.hidden")),
            "capacity": address(routing.capacity) if routing.kind == "expert" else None,
        }
    policy = PolicyStruct(
        rule=Rule[mode.rule.upper()],
        depths=mode.depths,
        stop=mode.stop,
        skipped=Skipped[mode.skipped.upper()],
        shared=mode.shared,
        thresholds=address(mode.thresholds),
        weight=address(heads.get(f"{prefix}.weight")),
        bias=address(heads.get(f"{prefix}.bias")),
        **values,
    )
    return policy, held


def _closed() -> UsageError:
    return UsageError("the engine is closed; open the bundle again")
