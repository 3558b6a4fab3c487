"""The Core ML package behind the engine's contract: one function call for each token and depth.

K/V are in Core ML's states, one set a sequence of a cache (``cache.py``). The functions have fixed rows, so a
token's row is its position, which is what sequential decoding, exits and filling in need; calls that place tokens
elsewhere are refused. A prompt whose states nobody observes is run in chunks. A model whose attention has no caches
reads a text in one call, and there are no tokens before it.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from ...bundle.folder import Bundle
from ...errors import EngineError, UsageError
from ...model.program import Program
from ...model.sizes import output_size
from ..backend import F32, I64, Lanes, check_fill
from ..kv import KVCache
from . import CAPABILITIES
from .cache import StatesCache
from .package import Package
from .signature import check_described, check_functions

Array = npt.NDArray[Any]
MACOS = 15
"""The first macOS with states and several functions in a model."""


class Runner(Protocol):
    """Runs the functions of a package."""

    def new_states(self) -> Any:
        """Return zeroed states of one sequence."""
        ...

    def run(self, name: str, inputs: dict[str, Array], states: Any) -> dict[str, Array]:
        """Return the outputs of the function ``name``; ``states`` are updated, inputs that it does not have are
        ignored."""
        ...

    def read_state(self, states: Any, name: str) -> Array:
        """Return the state ``name`` of ``states``; who changes it writes it back."""
        ...

    def write_state(self, states: Any, name: str, value: Array) -> None:
        """Make ``value`` the state ``name``."""
        ...


class CoremlBackend:
    """The Backend protocol over a runner: Core ML on a Mac, or the interpreter anywhere (engine coreml-reference)."""

    can = CAPABILITIES

    def __init__(self, program: Program, package: Package, runner: Runner, name: str = "coreml") -> None:
        self.program, self.name = program, name
        self._package, self._runner = package, runner
        self._at_once = program.encoder
        self._caches: WeakSet[StatesCache] = WeakSet()

    @staticmethod
    def open(bundle: Bundle, interpreted: bool = False) -> CoremlBackend:
        """Return the engine of ``bundle``, in Core ML or ``interpreted``; BundleError when the package is not the
        model's."""
        package = bundle.manifest.targets["coreml"].details_as(Package)
        check_described(package, bundle.program)
        path = bundle.package(package.path)
        if interpreted:
            runner = reference_runner(path, package, bundle.program)
            return CoremlBackend(bundle.program, package, runner, "coreml-reference")
        return CoremlBackend(bundle.program, package, ModelRunner(path, package))

    def close(self) -> None:
        """Release the states and the loaded package, even while the engine is referred to."""
        for cache in self._caches:
            cache.close()
        vars(self).pop("_runner", None)

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Return caches whose rows are in Core ML's states; UsageError when the package's have not so many."""
        if slots is not None and slots != self.program.kv_slots:
            raise UsageError(
                f"{slots} KV slots a sequence, but the states of the package have {self.program.kv_slots}; "
                "choose another policy for skipped K/V"
            )
        if capacity > self._package.capacity:
            raise UsageError(
                f"{capacity} tokens, but the states of the package hold {self._package.capacity}; "
                "export with a longer --context"
            )
        shapes = {} if self._at_once else self._package.states
        cache = StatesCache.empty(self.program, self._runner, shapes, sequences, capacity)
        self._caches.add(cache)
        return cache

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the state [B, S, D] of ids [B, S]."""
        given, out = self._given(ids, lanes.types), np.zeros((*ids.shape, self.program.width), np.float32)
        return self._each(
            "prologue",
            lanes,
            cache,
            out,
            lambda b, rows: ("embed", {name: of[b : b + 1, rows] for name, of in given.items()}),
        )

    def _given(self, ids: I64, types: I64 | None = None) -> dict[str, Array]:
        """Return the inputs of functions for tokens, [B, S] int32: ids, and their types where the model has any."""
        found: dict[str, Array] = {"ids": ids.astype(np.int32)}
        if self.program.token_types:
            found["types"] = np.zeros_like(found["ids"]) if types is None else types.astype(np.int32)
        return found

    def prompt(self, ids: I64, read: bool, lanes: Lanes, cache: KVCache) -> F32:
        """Run ids [1, S] at full depth, chunk by chunk; return the last token's logits [1, V], or [0, V] unless
        ``read``."""
        if self._at_once:
            return self._text(ids, read, lanes, cache)
        count, first, chunk = ids.shape[1], int(lanes.cached[0]), self._package.chunk
        states = self._states_of("prologue", lanes, 0, count, cache)
        for start in range(0, count, chunk):
            part = ids[:, start : start + chunk]
            # The padding leaves rows behind the last valid one, which are written again before they are seen.
            padded = np.zeros((1, chunk), np.int64)
            padded[:, : part.shape[1]] = part
            given = {**self._given(padded), "position": np.array([first + start], np.int32)}
            (state,) = self._runner.run("prefill", given, states).values()
        if not read:
            return np.empty((0, self.program.vocab_size), np.float32)
        last = {
            **_some(state, 0, slice(part.shape[1] - 1, part.shape[1])),
            "position": np.array([first + count - 1], np.int32),
        }
        (logits,) = self._runner.run("head", last, states).values()
        return logits

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after one pass, each lane at its own depth."""
        return self._each(
            "block",
            lanes,
            cache,
            np.zeros_like(state),
            lambda b, rows: (f"decode_d{lanes.depth[b]}", _some(state, b, rows)),
        )

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write K/V of ``state`` [B, S, D], as every layer's input, into the lanes' slots.

        A function fills all depths behind the one that a token left after. What it writes deeper than requested
        are rows behind the last of those slots, which are written again before they are seen.
        """
        if (lanes.depth < 1).any():
            raise UsageError("no token leaves before depth 0, so the package has no function to fill it in")
        if "kvfill_d0" not in self._package.functions:
            check_fill(self.program)
        self._each(
            "block",
            lanes,
            cache,
            np.zeros_like(state),
            lambda b, rows: (f"kvfill_d{lanes.depth[b] - 1}", _some(state, b, rows)),
        )

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the logits [N, V] of the flat rows ``rows`` [N] of state [B, S, D]."""
        batch, width, _ = state.shape
        out = np.zeros((batch, width, output_size(self.program)), np.float32)
        wanted = None if len(self.program.caches("epilogue")) else frozenset(rows.tolist())
        self._each("epilogue", lanes, cache, out, lambda b, rows: ("head", _some(state, b, rows)), wanted)
        return out.reshape(batch * width, -1)[rows]

    def _each(
        self,
        stage: str,
        lanes: Lanes,
        cache: KVCache,
        out: F32,
        call: Callable[[int, slice], tuple[str, dict[str, Array]]],
        rows: frozenset[int] | None = None,
    ) -> F32:
        """Make ``call`` for every valid token of every lane, or for the flat rows ``rows``; results go to out [B, S,
        …].

        Where a text is read at once, it is made for all tokens of a lane together.
        """
        width = out.shape[1]
        for b, n in enumerate(lanes.tokens.tolist()):
            states = self._states_of(stage, lanes, b, n, cache)
            if self._at_once:
                name, inputs = call(b, slice(n))
                out[b, :n] = self._whole(name, inputs, n)[0, :n]
                continue
            for t in range(n):
                if rows is not None and b * width + t not in rows:
                    continue
                name, inputs = call(b, slice(t, t + 1))
                position = np.array([lanes.cached[b] + t], np.int32)
                (result,) = self._runner.run(name, {**inputs, "position": position}, states).values()
                out[b, t] = result.reshape(out.shape[2:])
        return out

    def _text(self, ids: I64, read: bool, lanes: Lanes, cache: KVCache) -> F32:
        """Run ids [1, S], all of a text; return the last token's logits [1, V], or [0, V] unless ``read``."""
        self._states_of("prologue", lanes, 0, ids.shape[1], cache)
        if not read:
            return np.empty((0, self.program.vocab_size), np.float32)
        return self._whole("decode_all", self._given(ids), ids.shape[1])[0, -1:]

    def _whole(self, name: str, inputs: dict[str, Array], count: int) -> F32:
        """Return the logits, or else the states, that the function ``name`` makes of ``count`` tokens: [1, count,
        …]."""
        padded = {
            key: np.pad(value, [(0, 0), (0, self._package.chunk - count)] + [(0, 0)] * (value.ndim - 2))
            for key, value in inputs.items()
        }
        tokens = np.array([count], np.int32)
        found = self._runner.run(name, {**padded, "tokens": tokens}, None)
        made: F32 = found["logits"] if "logits" in found else next(iter(found.values()))
        return made[:, :count]

    def _states_of(self, stage: str, lanes: Lanes, b: int, n: int, cache: KVCache) -> Any:
        """Return the states of lane ``b``'s sequence; UsageError where its rows are not those of the functions."""
        if self._at_once:
            if lanes.cached[b] or n > self._package.chunk:
                raise UsageError(
                    f"{n} tokens behind {lanes.cached[b]}, but this model reads a text at once, of "
                    f"{self._package.chunk} tokens at most; give it whole, or shorten it"
                )
            return None
        slot, depth, first = lanes.first_slot + b, int(lanes.depth[b]), int(lanes.cached[b])
        slots = cache.slots if stage == "block" else 1
        sequence, own = divmod(slot, slots)
        if slots > 1 and own != depth:
            raise UsageError(
                f"depth {depth} in the KV slot of depth {own}: engine coreml gives each depth its own"
            )
        if not np.array_equal(lanes.positions[b, :n], np.arange(first, first + n)):
            raise UsageError(
                "tokens whose row is not their position, but a row of Core ML's states is a position; choose exits "
                "that fill in skipped K/V"
            )
        assert isinstance(cache, StatesCache)
        return cache.states_of(sequence)


class ModelRunner:
    """The package in Core ML, through coremltools: one loaded model a function, and states that serve them all."""

    def __init__(self, path: Path, package: Package) -> None:
        """EngineError anywhere but on a Mac that is new enough."""
        if reason := unavailable_reason():
            raise EngineError(
                f"engine coreml {reason}; run the bundle with a Swift host or export it to onnx"
            )
        import coremltools

        units = {
            "cpuOnly": coremltools.ComputeUnit.CPU_ONLY,
            "cpuAndGPU": coremltools.ComputeUnit.CPU_AND_GPU,
            "cpuAndNeuralEngine": coremltools.ComputeUnit.CPU_AND_NE,
        }
        compiled = coremltools.models.utils.compile_model(str(path))
        self._models = {
            name: coremltools.models.CompiledMLModel(compiled, compute_units=units[unit], function_name=name)
            for name, unit in package.functions.items()
        }

    def new_states(self) -> Any:
        """Return zeroed states of one sequence, made by one function and passed to all."""
        return next(iter(self._models.values())).make_state()

    def run(self, name: str, inputs: dict[str, Array], states: Any) -> dict[str, Array]:
        """Make one prediction and return its outputs; float inputs are passed as float16."""
        given = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in inputs.items()}
        out = self._models[name].predict(given, states)
        return {key: np.asarray(value, np.float32) for key, value in out.items()}

    def read_state(self, states: Any, name: str) -> Array:
        """Return the state ``name`` of ``states``, a copy."""
        found: Array = states.read_state(name)
        return found

    def write_state(self, states: Any, name: str, value: Array) -> None:
        """Make ``value`` the state ``name``."""
        states.write_state(name, value.astype(np.float16))


def reference_runner(path: Path, package: Package, program: Program) -> Runner:
    """Return the package in numpy, every result rounded to float16 as a device computes. Slow, and right.

    BundleError when it is not the package that is described, of a model with ``program``.
    """
    # coremltools says what it lacks without a Mac, and torchao, which it imports, what it lacks without a GPU.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from .interpreter import Interpreter
    finally:
        logging.disable(before)
    runner = Interpreter(path, rounding=True)
    check_functions(runner.functions, package, program)
    return runner


def unavailable_reason() -> str:
    """Return why Core ML cannot run on this computer; empty where it can."""
    if platform.system() != "Darwin":
        return f"needs macOS {MACOS} or newer, this is {platform.system()}"
    version = platform.mac_ver()[0]
    return (
        ""
        if int(version.split(".")[0]) >= MACOS
        else f"needs macOS {MACOS} or newer, this is macOS {version}"
    )


def _some(state: F32, b: int, rows: slice) -> dict[str, Array]:
    """Return the states of some tokens of a lane as a function's input, [1, n, D]."""
    return {"hidden": state[b : b + 1, rows]}
