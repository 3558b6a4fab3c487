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
from ..tokens import TokenMode
from . import CAPABILITIES
from .batch import NativeBatch
from .cache import Model, NativeCache, NativeSession
from .decoder import NativeDecoder
from .file import LanesFile
from .library import Activations, Calls, Info, Kv, LaneArrays, OpenOptions, SessionOptions
from .node_costs import NodeCost, count_nodes, read_nodes
from .repacked import repacked

KV_BITS = {32: Kv.F32, 16: Kv.F16, 8: Kv.I8, 4: Kv.I4}


class NativeBackend:
    """The Backend protocol on the lane engine.

    A row's result depends on nothing but its own input, position, depth and slot: the same bits beside any others, in
    any chunk and with any number of threads. Lanes that share K/V may be of any width, and of any depths at once.
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
        cpus: Sequence[int] = (),
    ) -> None:
        """``path``: a file of ``program``, which was checked (``LanesFile``).

        ``threads``: that compute, at most; None: as many as there are cores, fewer where that is quicker. ``kv_bits``:
        of a number of K/V, 8, 16 or 32. ``kernels``: by name, None: EDGELOOP_KERNELS, or the best here.
        ``cpus``: processors, by their numbers; thread i of the engine runs on number i % their count, and as many as
        they are compute unless ``threads`` says otherwise. Thread 0 is the caller's, which stays where it is.
        """
        if kv_bits not in KV_BITS:
            raise UsageError(f"K/V of {kv_bits} bits, wanted {' or '.join(map(str, KV_BITS))}")
        self.program, self._kv = program, KV_BITS[kv_bits]
        numbers = (ctypes.c_int32 * len(cpus))(*cpus)
        options = OpenOptions(
            activations=activations,
            threads=threads or len(cpus),
            pinned=len(cpus),
            cpus=ctypes.addressof(numbers),
            kernels=kernels.encode() if kernels else None,
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
    def open(
        bundle: Bundle, threads: int | None = None, kv_bits: int = 32, cpus: Sequence[int] = ()
    ) -> NativeBackend:
        """The model of ``bundle``; BundleError when its file is not that of the manifest's program.

        A bundle without the target is packed anew from target onnx, once (``repacked.py``).
        """
        target = bundle.manifest.targets.get("native")
        if target is None:
            path = repacked(bundle)
        else:
            path = bundle.path(target.weights)
            LanesFile(path, bundle.manifest.program)
        return NativeBackend(bundle.program, path, threads=threads, kv_bits=kv_bits, cpus=cpus)

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

    def count_nodes(self) -> None:
        """Write down what every node of every stage's call costs from now on, and forget what was written down."""
        count_nodes(self._address)

    def node_costs(self) -> list[NodeCost]:
        """Return what was written down since ``count_nodes``, in the order in which it ran; UsageError without."""
        return read_nodes(self._address)

    @property
    def _address(self) -> int:
        if self._model is None:
            raise UsageError("the engine is closed; open the bundle again")
        return self._model.pointer

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
        out, address = call.state("prologue")
        given = _ids(ids, call.rows)
        types = None if lanes.types is None else call.types(lanes).ctypes.data
        _session(cache, "prologue")("el_prologue", call.lanes, given.ctypes.data, types, address)
        return out

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D] after one pass, each lane at its own depth."""
        call = self._call(lanes)
        out, address = call.state("block")
        _session(cache, "block")("el_block", call.lanes, call.given("block", state), address)
        return out

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write the K/V of ``state`` [B, S, D] as every layer's input into the lanes' slots."""
        check_fill(self.program)
        call = self._call(lanes)
        _session(cache, "block")("el_fill", call.lanes, call.given("fill", state))

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] and flat rows [N] of B·S → logits [N, V]."""
        call, wanted = self._call(lanes), np.ascontiguousarray(rows, np.int64)
        out, address = call.logits(len(wanted), self._logits)
        given = call.given("epilogue", state)
        _session(cache, "epilogue")(
            "el_epilogue", call.lanes, given, wanted.ctypes.data, len(wanted), address
        )
        return out

    def prompt(self, ids: I64, read: bool, lanes: Lanes, cache: KVCache) -> F32:
        """ids [1, S] at full depth → logits [1, V] of the last token, or [0, V] unless ``read``."""
        call, depths = self._call(lanes), self.program.depths
        session = _session(cache, "prologue")
        if session is not _session(cache, "block"):
            return self._by_stages(ids, read, lanes, cache)
        out, address = call.logits(int(read), self._logits)
        given = _ids(ids, call.rows)
        session("el_prompt", call.lanes, given.ctypes.data, depths, address if read else None)
        return out

    def token_decoder(self, mode: TokenMode, cache: KVCache, sequence: int) -> NativeDecoder:
        """What runs whole tokens of a ``sequence`` of ``cache``, from empty."""
        return NativeDecoder(_session(cache, "block"), sequence, mode, self._logits)

    def token_batch(self, cache: KVCache) -> NativeBatch:
        """What runs whole tokens of many sequences of ``cache`` at once."""
        return NativeBatch(_session(cache, "block"), self._logits)

    def _by_stages(self, ids: I64, read: bool, lanes: Lanes, cache: KVCache) -> F32:
        """``prompt`` where the block's slots are another session's."""
        sequence, state = lanes.first_slot, self.prologue(ids, lanes, cache)
        for depth in range(self.program.depths):
            state = self.block(state, lanes.at(depth, cache.slot("block", sequence, depth)), cache)
        rows = np.array([ids.shape[1] - 1] if read else [], np.int64)
        return self.epilogue(state, rows, lanes, cache)

    def _call(self, lanes: Lanes) -> _Call:
        """What a call with ``lanes`` needs beside their arrays; made once, since those are written in place."""
        found = self._calls.get(lanes)
        if found is None:
            found = self._calls[lanes] = _Call(lanes, self.program.width)
        return found


class _Call:
    """The addresses of one Lanes, and the arrays that its calls take and give.

    An address is looked up once: that takes as long as the rest of a call does in Python.
    """

    def __init__(self, lanes: Lanes, width: int) -> None:
        count, length = lanes.positions.shape
        self._shape = (*lanes.state_shape, width)
        self._packed = lanes if isinstance(lanes, PackedLanes) else None
        # Addresses hold no memory.
        self._held: list[npt.NDArray[Any]] = [lanes.depth, lanes.cached, lanes.tokens, lanes.positions]
        depth, cached, tokens, positions = (array.ctypes.data for array in self._held)
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
        self.rows = lanes.state_shape[0] * lanes.state_shape[1]
        """Of a state."""
        self._states: dict[str, tuple[F32, int]] = {}
        self._given: dict[str, tuple[F32, int]] = {}
        self._logits: dict[int, tuple[F32, int]] = {}

    def state(self, stage: str) -> tuple[F32, int]:
        """The array that ``stage`` writes states to, and its address."""
        found = self._states.get(stage)
        if found is None:
            found = self._states[stage] = _with_address(np.zeros(self._shape, np.float32))
        return found

    def given(self, stage: str, state: F32) -> int:
        """The address of the state that ``stage`` reads: usually of the array that it read the last time."""
        known = self._given.get(stage)
        if known is None or known[0] is not state:
            plain = np.ascontiguousarray(state, np.float32)
            if plain.size != self.rows * self._shape[-1]:
                raise UsageError(f"a state of shape {list(plain.shape)}, wanted {list(self._shape)}")
            known = self._given[stage] = _with_address(plain)
        return known[1]

    def logits(self, rows: int, width: int) -> tuple[F32, int]:
        """An array for so many rows of logits, and its address."""
        found = self._logits.get(rows)
        if found is None:
            if len(self._logits) > 16:  # a scheduler asks for another number at each tick
                self._logits.clear()
            found = self._logits[rows] = _with_address(np.zeros((rows, width), np.float32))
        return found

    def types(self, lanes: Lanes) -> npt.NDArray[np.int64]:
        """The types of the rows that states have."""
        assert lanes.types is not None
        if self._packed is None:
            return np.ascontiguousarray(lanes.types, np.int64)
        return np.ascontiguousarray(lanes.types.reshape(-1)[self._packed.kept], np.int64)


def _with_address(array: F32) -> tuple[F32, int]:
    return array, array.ctypes.data


def _ids(ids: I64, rows: int) -> I64:
    """ids as the library takes them; UsageError unless they are ``rows``."""
    if ids.size != rows:
        raise UsageError(f"{ids.size} token ids, wanted {rows}")
    return np.ascontiguousarray(ids, np.int64)


def _session(cache: KVCache, stage: str) -> NativeSession:
    assert isinstance(cache, NativeCache)
    return cache.sessions[stage]


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
