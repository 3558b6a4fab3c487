"""The ONNX Runtime engine: three sessions, caches bound in place, bindings kept from call to call.

A decode step calls the same few (stage, lanes, tokens, slot) shapes over and over. Each has a plan: an
I/O binding whose buffers are plain numpy arrays, so a call writes some integers, copies one hidden state in
and runs. K and V are bound as input and output at the same address, and the attention operator writes the
new rows there: nothing is copied per token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..backend import F32, I64, Lanes
from ..errors import EngineError
from ..kv import KVCache
from ..spec import Spec

_PLANS = 64  # kept per cache; prefill chunks of odd sizes come and go
_threads: int | None = None


def default_threads() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """One thread pool for all sessions: three pools of spinning workers would fight for the cores."""
    global _threads
    wanted = threads or default_threads()
    if _threads is None:
        ort.set_global_thread_pool_sizes(wanted, 1)
        _threads = wanted
    elif threads is not None and threads != _threads:
        raise EngineError(
            f"{threads} threads wanted, but this process already runs onnxruntime with {_threads}: "
            "the pool is made once, start another process"
        )


def open_session(path: Path) -> ort.InferenceSession:
    """A session of one graph on the shared thread pool; EngineError says why it does not load."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise EngineError(f"onnxruntime {ort.__version__} cannot load {path.name}: {reason}") from error


class Plan:
    """One binding: fixed shapes, fixed buffers."""

    def __init__(
        self, stage: GraphSession, lanes: int, tokens: int, rows: int, slot: int, cache: KVCache
    ) -> None:
        spec = stage.spec
        shapes: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "ids": ((lanes, tokens), np.int64),
            "state": ((lanes, tokens, spec.hidden_size), np.float32),
            "rows": ((rows,), np.int64),
            "depth": ((lanes,), np.int64),
            "positions": ((lanes, tokens), np.int64),
            "last": ((lanes,), np.int32),
            "longest": ((1,), np.int32),
            "tokens": ((lanes,), np.int32),
            "next": ((lanes, tokens, spec.hidden_size), np.float32),
            "logits": ((rows, spec.vocab_size), np.float32),
        }
        self.binding = stage.session.io_binding()
        self.inputs: dict[str, npt.NDArray[Any]] = {}
        for name in stage.inputs:
            if not name.startswith("past."):
                self.inputs[name] = np.zeros(*shapes[name])
                self._bind(self.binding.bind_input, name, self.inputs[name])
        self.output: F32 = np.zeros(*shapes[stage.output])
        self._bind(self.binding.bind_output, stage.output, self.output)
        self._caches = cache.stages[stage.name]  # the binding holds addresses, this holds the memory
        for i, pair in enumerate(self._caches):
            for side, array in zip(("key", "value"), pair, strict=True):
                part = array[slot : slot + lanes]
                self._bind(self.binding.bind_input, f"past.{i}.{side}", part)
                self._bind(self.binding.bind_output, f"present.{i}.{side}", part)

    @staticmethod
    def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def set_lanes(self, lanes: Lanes) -> None:
        inputs = self.inputs
        if "depth" in inputs:
            inputs["depth"][:] = lanes.depth
        if "positions" in inputs:
            inputs["positions"][:] = lanes.positions
            last = inputs["last"]
            np.add(lanes.cached, lanes.tokens, out=last)
            inputs["longest"][0] = last.max()
            last -= 1
            inputs["tokens"][:] = lanes.tokens


class GraphSession:
    """One graph, its session and its plans."""

    def __init__(self, name: str, output: str, path: Path, spec: Spec) -> None:
        self.name, self.output, self.spec = name, output, spec
        self.session = open_session(path)
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.engine_ns = 0
        """Time spent inside onnxruntime so far."""
        self._plans: WeakKeyDictionary[KVCache, dict[tuple[int, ...], Plan]] = WeakKeyDictionary()

    def plan(self, shape: tuple[int, int], rows: int, slot: int, cache: KVCache) -> Plan:
        plans = self._plans.setdefault(cache, {})
        key = (*shape, rows, slot)
        plan = plans.get(key)
        if plan is None:
            if len(plans) >= _PLANS:
                plans.clear()
            plan = plans[key] = Plan(self, *shape, rows, slot, cache)
        return plan

    def run(self, plan: Plan) -> F32:
        start = perf_counter_ns()
        try:
            self.session.run_with_iobinding(plan.binding)
        except Exception as error:  # as in open_session
            raise EngineError(f"onnxruntime failed in {self.name}: {str(error).splitlines()[0]}") from error
        self.engine_ns += perf_counter_ns() - start
        return plan.output


class OnnxBackend:
    """The Backend protocol on ONNX Runtime's CPU provider."""

    name = "onnx"

    def __init__(
        self,
        spec: Spec,
        graphs: Mapping[str, Path],
        *,
        threads: int | None = None,
    ) -> None:
        """``graphs``: the file of each stage. ``threads``: by default every core of this process."""
        use_threads(threads)
        self.spec = spec
        self._prologue = GraphSession("prologue", "state", graphs["prologue"], spec)
        self._block = GraphSession("block", "next", graphs["block"], spec)
        self._epilogue = GraphSession("epilogue", "logits", graphs["epilogue"], spec)

    @property
    def engine_ns(self) -> int:
        """Nanoseconds spent inside onnxruntime so far; all else of a token's time is the host's."""
        return sum(graph.engine_ns for graph in (self._prologue, self._block, self._epilogue))

    def new_cache(self, sequences: int, capacity: int) -> KVCache:
        """Caches of ``sequences`` × ``capacity`` tokens, zeroed."""
        return KVCache.allocate(self.spec, sequences, capacity)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]."""
        batch, length = ids.shape
        plan = self._prologue.plan((batch, length), 0, lanes.first_slot, cache)
        plan.inputs["ids"][:] = ids
        plan.set_lanes(lanes)
        return self._prologue.run(plan)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D] after one pass, each lane at its own depth."""
        batch, length, _ = state.shape
        plan = self._block.plan((batch, length), 0, lanes.first_slot, cache)
        plan.inputs["state"][:] = state
        plan.set_lanes(lanes)
        return self._block.run(plan)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] and flat rows [N] of B·S → logits [N, V]."""
        batch, length, _ = state.shape
        plan = self._epilogue.plan((batch, length), len(rows), lanes.first_slot, cache)
        plan.inputs["state"][:] = state
        plan.inputs["rows"][:] = rows
        plan.set_lanes(lanes)
        return self._epilogue.run(plan)
