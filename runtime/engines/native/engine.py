"""The lane engine behind the contract: a mapped file, sessions of it, and a call for each stage."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import numpy.typing as npt

from ...bundle.folder import Bundle
from ...errors import BundleError, UsageError
from ...model.program import Program
from ...model.sizes import output_size
from ..backend import F32, I64, Lanes, check_fill
from ..kv import KVCache
from ..packed import PackedLanes
from . import CAPABILITIES
from .cache import Model, NativeCache, NativeSession
from .file import LanesFile
from .library import Activations, Calls, Info, Kv, LaneArrays, OpenOptions, SessionOptions
from .repacked import repacked

KV_BITS = {32: Kv.F32, 16: Kv.F16}


class NativeBackend:
    """The Backend protocol on the lane engine.

    A row's result depends on nothing but its own input, position, depth and slot: the same bits in any company, chunk
    and number of threads. Lanes that share K and V may be of any width, and of any depths at once.
    """

    name = "native"
    can = CAPABILITIES

    def __init__(
        self,
        program: Program,
        path: Path,
        *,
        threads: int | None = None,
        kv_bits: int = 32,
        activations: Activations = Activations.INT8,
        kernels: str | None = None,
    ) -> None:
        """``path``: a file of ``program``, which was checked (``LanesFile``).

        ``threads``: that compute, at most; None: as many as there are cores, fewer where that is quicker. ``kv_bits``:
        of a number of K and V, 16 or 32. ``kernels``: by name, None: EDGELOOP_KERNELS, or the best of this processor.
        """
        if kv_bits not in KV_BITS:
            raise UsageError(f"K and V of {kv_bits} bits, wanted {' or '.join(map(str, KV_BITS))}")
        self.program, self._kv = program, KV_BITS[kv_bits]
        options = OpenOptions(
            activations=activations, threads=threads or 0, kernels=kernels.encode() if kernels else None
        )
        calls, made = Calls(), ctypes.c_void_p()
        calls("el_open", str(path).encode(), ctypes.byref(options), ctypes.byref(made))
        assert made.value is not None
        self._model: Model | None = Model(made.value)
        self.info = Info()
        calls("el_model_info", made.value, ctypes.byref(self.info))
        _check_program(self.info, program, path)
        self._sessions = WeakSet[NativeSession]()
        self._calls: WeakKeyDictionary[Lanes, _Call] = WeakKeyDictionary()
        self._logits = output_size(program)

    @staticmethod
    def open(bundle: Bundle, threads: int | None = None, kv_bits: int = 32) -> NativeBackend:
        """The model of ``bundle``; BundleError when its file is not that of the manifest's program.

        A bundle without the target is packed anew from target onnx, once (``repacked.py``).
        """
        target = bundle.manifest.targets.get("native")
        if target is None:
            path = repacked(bundle)
        else:
            path = bundle.path(target.weights)
            LanesFile(path, bundle.manifest.program)
        return NativeBackend(bundle.program, path, threads=threads, kv_bits=kv_bits)

    @property
    def kernels(self) -> str:
        """The name of the kernels that are used."""
        found: bytes = self.info.kernels
        return found.decode()

    def close(self) -> None:
        """Let go of the file and of all caches, whoever still refers to them."""
        for session in list(self._sessions):
            session.close()
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> NativeCache:
        """Empty caches of ``sequences`` × ``capacity`` tokens; UsageError for more ``slots`` than the model has."""
        wanted = self.program.kv_slots if slots is None else slots
        if not 1 <= wanted <= self.program.kv_slots:
            raise UsageError(
                f"{wanted} KV slots a sequence, wanted 1 to {self.program.kv_slots}, which the model has"
            )
        if self._model is None:
            raise UsageError("the engine is closed; open the bundle again")
        room = min(capacity, self.program.context_length)
        options = SessionOptions(sequences=sequences, capacity=room, slots=wanted, kv=self._kv)
        session = NativeSession(self._model, self.program, options)
        self._sessions.add(session)
        return NativeCache.of(session, capacity, wanted)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]; of packed lanes, as in every stage, [N, 1] → [N, 1, D]."""
        call = self._call(lanes)
        out = call.state("prologue", self.program.width)
        given = np.ascontiguousarray(ids, np.int64)
        types = None if lanes.types is None else _address(call.types(lanes))
        _session(cache, "prologue")("el_prologue", call.lanes, _address(given), types, _address(out))
        return out

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D] after one pass, each lane at its own depth."""
        call = self._call(lanes)
        out = call.state("block", self.program.width)
        given = np.ascontiguousarray(state, np.float32)
        _session(cache, "block")("el_block", call.lanes, _address(given), _address(out))
        return out

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write the K and V of ``state`` [B, S, D] as every layer's input into the lanes' slots."""
        check_fill(self.program)
        given = np.ascontiguousarray(state, np.float32)
        _session(cache, "block")("el_fill", self._call(lanes).lanes, _address(given))

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] and flat rows [N] of B·S → logits [N, V]."""
        call = self._call(lanes)
        out = call.logits(len(rows), self._logits)
        given, wanted = np.ascontiguousarray(state, np.float32), np.ascontiguousarray(rows, np.int64)
        _session(cache, "epilogue")(
            "el_epilogue", call.lanes, _address(given), _address(wanted), len(wanted), _address(out)
        )
        return out

    def _call(self, lanes: Lanes) -> _Call:
        """What a call with ``lanes`` needs beside their arrays; made once, since those are written in place."""
        found = self._calls.get(lanes)
        if found is None:
            found = self._calls[lanes] = _Call(lanes)
        return found


class _Call:
    """The addresses of one Lanes, and the arrays that its calls give."""

    def __init__(self, lanes: Lanes) -> None:
        count, length = lanes.positions.shape
        self._shape = lanes.state_shape
        self._packed = lanes if isinstance(lanes, PackedLanes) else None
        # Addresses hold no memory.
        self._given: list[npt.NDArray[Any]] = [lanes.depth, lanes.cached, lanes.tokens, lanes.positions]
        depth, cached, tokens, positions = map(_address, self._given)
        made = LaneArrays(
            count=count,
            stride=length,
            padded=0 if self._packed else length,
            first_slot=lanes.first_slot,
            depth=depth,
            cached=cached,
            tokens=tokens,
            positions=positions,
        )
        self.lanes = ctypes.byref(made)
        self._states: dict[str, F32] = {}
        self._logits: dict[int, F32] = {}

    def state(self, stage: str, width: int) -> F32:
        """The array that ``stage`` writes states to."""
        found = self._states.get(stage)
        if found is None:
            found = self._states[stage] = np.zeros((*self._shape, width), np.float32)
        return found

    def logits(self, rows: int, width: int) -> F32:
        """An array for so many rows of logits."""
        found = self._logits.get(rows)
        if found is None:
            if len(self._logits) > 16:  # a scheduler asks for another number at each tick
                self._logits.clear()
            found = self._logits[rows] = np.zeros((rows, width), np.float32)
        return found

    def types(self, lanes: Lanes) -> npt.NDArray[np.int64]:
        """The types of the rows that states have."""
        assert lanes.types is not None
        if self._packed is None:
            return np.ascontiguousarray(lanes.types, np.int64)
        return np.ascontiguousarray(lanes.types.reshape(-1)[self._packed.kept], np.int64)


def _session(cache: KVCache, stage: str) -> NativeSession:
    assert isinstance(cache, NativeCache)
    return cache.sessions[stage]


def _address(array: npt.NDArray[np.generic]) -> int:
    return array.ctypes.data


def _check_program(info: Info, program: Program, path: Path) -> None:
    """BundleError unless the library sees the sizes of ``program`` in the file."""
    wanted: Sequence[tuple[str, int]] = (
        ("width", program.width),
        ("output", output_size(program)),
        ("vocab_size", program.vocab_size),
        ("shares_kv", int(program.shares_kv)),
    )
    for name, size in wanted:
        if (found := getattr(info, name)) != size:
            raise BundleError(
                f"{path} has a {name} of {found}, the manifest {size}; export the checkpoint again"
            )
