"""Graphs in ONNX Runtime: one pool of threads, sessions, caches bound in place, bindings kept from call to call.

A decode step makes the same few calls over and over. Each has a plan: an I/O binding to plain numpy arrays that
are written in place. K/V are bound as input and output at the same address, and the attention operator
writes the new rows there: nothing is copied per token. Only ``fill``, which has no attention operator, hands its rows
over in arrays of its own. The rotary tables are inputs too, a pair of arrays for each rotation, as long as a cache is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from pathlib import Path
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ...errors import EngineError
from ...model.program import Program
from ...model.rotary import RotaryTables
from ...model.sizes import output_size
from ..backend import F32, Lanes
from ..kv import KVCache
from ..packed import PackedLanes
from .check import check_signature

logger = logging.getLogger(__name__)

# Plans kept for a graph and a cache; chunks of odd sizes come and go. With exits a stage is called with some 16
# numbers of rows at every depth. A plan is small but for its output, which for all rows of a chunk is not.
_PLANS = 256
_PLAN_BYTES = 128 << 20
_threads: int | None = None


def default_threads() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """Set the size of the one thread pool of all sessions: three pools of spinning workers would fight for the
    cores."""
    global _threads
    wanted = threads or default_threads()
    if _threads is None:
        try:
            ort.set_global_thread_pool_sizes(wanted, 1)
        except (
            Exception
        ):  # onnxruntime's own Fail: the host program made a pool before us, and there is only one
            logger.warning("this process already has an onnxruntime thread pool; it is used as it is")
        _threads = wanted
    elif threads is not None and threads != _threads:
        raise EngineError(
            f"{threads} threads wanted, but this process already runs onnxruntime with {_threads}: "
            "the pool is made once, start another process"
        )


def open_session(path: Path, profiles: Path | None = None) -> ort.InferenceSession:
    """Return a session of one graph on the shared thread pool; EngineError says why it does not load.

    ``profiles``: the folder that onnxruntime writes a profile of every run into.
    """
    ort.set_default_logger_severity(4)  # it looks for GPUs, and warns that there are none
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4  # what it logs of an error, in colour, is in the exception too
    options.enable_mem_pattern = False
    if profiles is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profiles / path.stem)
    # Not by its name: a file in onnxruntime's own format is none that check_graph looked into.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise EngineError(f"onnxruntime {ort.__version__} cannot load {path.name}: {reason}") from error


class RotaryInputs:
    """The rotary tables of a model by the names of graph inputs: ``cos`` and ``sin``, ``cos.1`` of its second
    rotation …"""

    def __init__(self, program: Program) -> None:
        self._tables = [RotaryTables(by) for by in program.rotations]

    def rows(self, capacity: int) -> dict[str, F32]:
        """Return those of at least the first ``capacity`` positions; the same arrays until more are wanted."""
        found = dict[str, F32]()
        for i, table in enumerate(self._tables):
            tail = f".{i}" if i else ""
            found[f"cos{tail}"], found[f"sin{tail}"] = table.rows(capacity)
        return found


class OrtBinding:
    """One binding of a graph: to one Lanes and its slots of one cache, and to buffers of its own.

    The lanes' arrays are bound as they are, so their new values are seen without a copy. So is a state, which is
    the buffer of another plan: between two stages of a token nothing is copied or bound again.
    """

    def __init__(self, graph: GraphSession, lanes: Lanes, rows: int, cache: KVCache) -> None:
        program, (batch, length) = graph.program, lanes.state_shape
        self.binding = graph.session.io_binding()
        self.lanes = lanes  # a binding holds addresses: the plan holds the memory
        self._caches = cache.stages[graph.name]
        self.ids = np.zeros((batch, length), np.int64)
        self.rows = np.zeros(rows, np.int64)
        self._state: F32 | None = None
        shape = (rows, output_size(program)) if graph.output == "logits" else (batch, length, program.width)
        self.output: F32 = np.zeros(shape, np.float32)
        self._bind_output(graph.output, self.output)
        self.fresh = np.zeros(1, np.int64)
        self._rotary = graph.rotary.rows(cache.capacity)
        own: dict[str, npt.NDArray[Any]]
        self._types = np.zeros_like(lanes.positions) if lanes.types is None else lanes.types
        own = {
            "ids": self.ids,
            "rows": self.rows,
            "fresh": self.fresh,
            "types": self._types,
            **self._rotary,
        }
        for name in graph.inputs:
            if name != "state" and not name.startswith("past."):
                self._bind_input(name, own[name] if name in own else getattr(lanes, name))
        slots = slice(lanes.first_slot, lanes.first_slot + len(lanes.depth))
        for i, pair in enumerate(self._caches):
            for side, array in zip(("key", "value"), pair, strict=True):
                self._bind_input(f"past.{i}.{side}", array[slots])
                self._bind_output(f"present.{i}.{side}", array[slots])

    def set_state(self, state: F32) -> None:
        """Bind ``state`` [B, S, D] as the input, unless it is the one that is bound."""
        if state is not self._state:
            self._state = np.ascontiguousarray(state, np.float32)
            self._bind_input("state", self._state)

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        self.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: npt.NDArray[Any]) -> None:
        self.binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class GraphSession:
    """One graph, its session and its bindings."""

    def __init__(
        self,
        name: str,
        output: str,
        path: Path,
        program: Program,
        rotary: RotaryInputs | None = None,
        profiles: Path | None = None,
    ) -> None:
        """``rotary``: tables that several graphs share. ``profiles`` as in ``open_session``."""
        self.name, self.output, self.program = name, output, program
        self.rotary = rotary or RotaryInputs(program)
        self.session = open_session(path, profiles)
        check_signature(self.session, path, name, output, program)
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.engine_ns = 0
        """Nanoseconds spent inside onnxruntime so far."""
        self._plans: WeakKeyDictionary[KVCache, dict[tuple[int, int], OrtBinding]] = WeakKeyDictionary()

    def close(self) -> None:
        """Release the session and what was bound to it."""
        self._plans.clear()
        vars(self).pop("session", None)

    def end_profile(self) -> Path:
        """End the profile of the graph's runs, which the session was opened with; return its file."""
        return Path(self.session.end_profiling())

    def plan(self, lanes: Lanes, rows: int, cache: KVCache) -> OrtBinding:
        """Return the binding of a call; made once for the same ``lanes`` (the object), number of rows, and cache."""
        plans = self._plans.setdefault(cache, {})
        key = (id(lanes), rows)  # plans hold their lanes, so an id is not used again while its plan is here
        plan = plans.pop(key, None)
        if plan is None:
            plan = OrtBinding(self, lanes, rows, cache)
            size = plan.output.nbytes + sum(p.output.nbytes for p in plans.values())
            while plans and (len(plans) >= _PLANS or size > _PLAN_BYTES):
                size -= plans.pop(next(iter(plans))).output.nbytes
        plans[key] = plan  # behind all others: the first is the one that was not used for longest
        return plan

    def run(self, plan: OrtBinding) -> F32:
        """Run the graph once and return the binding's output buffer."""
        start = perf_counter_ns()
        try:
            self.session.run_with_iobinding(plan.binding)
        except Exception as error:  # as in open_session
            raise EngineError(f"onnxruntime failed in {self.name}: {str(error).splitlines()[0]}") from error
        self.engine_ns += perf_counter_ns() - start
        return plan.output


class OrtFillBinding:
    """One binding of the fill graph: to the arrays of one Lanes, and to buffers of its own."""

    def __init__(
        self,
        session: ort.InferenceSession,
        lanes: Lanes,
        program: Program,
        rotary: dict[str, F32],
        capacity: int,
    ) -> None:
        shape = lanes.state_shape
        self.capacity = capacity
        """Of the caches for whose positions there are ``rotary``."""
        self.binding = session.io_binding()
        self.state: F32 = np.zeros((*shape, program.width), np.float32)
        given: dict[str, npt.NDArray[Any]] = {
            "state": self.state,
            "depth": lanes.depth,
            "positions": lanes.positions,
            **rotary,
        }
        if isinstance(lanes, PackedLanes):  # rows of a token each, as far as this graph is concerned
            given |= {"depth": lanes.row_depth, "positions": np.zeros(shape, np.int64)}
        self.positions = given["positions"]
        self._memory = given  # a binding holds addresses
        for i in session.get_inputs():
            array = given[i.name]
            self.binding.bind_input(i.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.rows: list[F32] = []
        names = [o.name for o in session.get_outputs()]
        for name, cache in zip(names, (c for c in program.caches("block") for _ in range(2)), strict=True):
            rows = np.zeros((*shape, cache.kv_heads * cache.head_dim), np.float32)
            self.binding.bind_output(name, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            # As the caches have them: [B, K heads, S, head_dim].
            self.rows.append(rows.reshape(*shape, cache.kv_heads, cache.head_dim).transpose(0, 2, 1, 3))


class FillSession:
    """The graph that only projects K/V."""

    def __init__(self, path: Path, program: Program, rotary: RotaryInputs) -> None:
        self.session = open_session(path)
        check_signature(self.session, path, "fill", "", program)
        self.program, self.rotary = program, rotary
        self.engine_ns = 0
        self._plans: WeakKeyDictionary[Lanes, OrtFillBinding] = WeakKeyDictionary()

    def close(self) -> None:
        """Release the session and what was bound to it."""
        self._plans.clear()
        vars(self).pop("session", None)

    def run(self, state: F32, lanes: Lanes, cache: KVCache, depths: Container[int]) -> None:
        """Write K/V of ``state`` [B, S, D] into the slots of lanes at ``depths``, in every layer of the block."""
        plan = self._plans.get(lanes)
        if plan is None or plan.capacity < cache.capacity:
            rotary = self.rotary.rows(cache.capacity)
            plan = self._plans[lanes] = OrtFillBinding(
                self.session, lanes, self.program, rotary, cache.capacity
            )
        packed = lanes if isinstance(lanes, PackedLanes) else None
        if packed:
            plan.positions[:, 0] = lanes.positions.reshape(-1)[packed.kept]
        plan.state[:] = state
        start = perf_counter_ns()
        try:
            self.session.run_with_iobinding(plan.binding)
        except Exception as error:  # as in open_session
            raise EngineError(f"onnxruntime failed in fill: {str(error).splitlines()[0]}") from error
        self.engine_ns += perf_counter_ns() - start
        arrays = [array for pair in cache.stages["block"] for array in pair]
        row = 0
        numbers = zip(lanes.depth.tolist(), lanes.cached.tolist(), lanes.tokens.tolist(), strict=True)
        for b, (depth, cached, n) in enumerate(numbers):
            for array, rows in zip(arrays, plan.rows, strict=True) if n and depth in depths else ():
                new = rows[row : row + n, :, 0].transpose(1, 0, 2) if packed else rows[b, :, :n]
                array[lanes.first_slot + b, :, cached : cached + n] = new
            row += n
