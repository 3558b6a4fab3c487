"""The torch modules behind the Backend protocol: the oracle that every artifact is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.backend import F32, I64, Lanes, check_fill, fresh_tokens
from ..runtime.kv import KVCache
from ..runtime.llama_like import spec_of
from ..runtime.model.program import Program
from ..runtime.model.rotary import RotaryTables
from ..runtime.packed import PackedLanes
from .fused import Numerics
from .stages import AnyStage, stages_of


class Oracle:
    """Stage modules over stored weights, called with numpy arrays like an engine."""

    name = "torch"

    def __init__(
        self,
        program: Program,
        weights: dict[str, Tensor],
        numerics: Numerics,
        turns: npt.DTypeLike = np.float32,
    ) -> None:
        """``turns``: the type in which the engine that is compared with it keeps its rotary tables."""
        self.program, self.numerics, self._weights, self._turns = program, numerics, weights, turns
        spec = self.spec = spec_of(program)
        self._rotary = RotaryTables(program.rotations[0], turns)
        self.stages: dict[str, AnyStage] = {
            kind.name: kind(spec, weights, numerics).eval() for kind in stages_of(program)
        }

    @staticmethod
    def open(program: Program, weights: Path, numerics: Numerics) -> Oracle:
        """Over a weights file, mapped rather than read."""
        return Oracle(program, load_file(weights), numerics)

    def with_activations(self, activations: Callable[[Tensor], Tensor]) -> Oracle:
        """The same modules, the inputs of whose quantized matrices are ``activations`` of what they were."""
        return Oracle(
            self.program, self._weights, replace(self.numerics, activations=activations), self._turns
        )

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Caches of ``sequences`` × ``capacity`` tokens, zeroed."""
        return KVCache.allocate(self.program, sequences, capacity, slots)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]."""
        return self._run("prologue", {"ids": ids}, lanes, cache)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D]."""
        return self._run("block", {"state": state, "depth": lanes.depth}, lanes, cache)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D], rows [N] → logits [N, V]."""
        return self._run("epilogue", {"state": state, "rows": rows}, lanes, cache)

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """K and V of ``state`` [B, S, D] as every layer's input, into the lanes' slots."""
        check_fill(self.program)
        stage = self.stages["fill"]
        cos, sin = self._rotary.rows(cache.capacity)
        values = {
            "state": state,
            "depth": lanes.depth,
            "positions": lanes.positions,
            "cos": cos,
            "sin": sin,
        }
        with torch.no_grad():
            found = stage(*(torch.from_numpy(np.ascontiguousarray(values[n])) for n in stage.input_names))
        arrays = [array for pair in cache.stages["block"] for array in pair]
        for array, rows in zip(arrays, found, strict=True):
            for b, (cached, n) in enumerate(zip(lanes.cached, lanes.tokens, strict=True)):
                heads = rows[b, :n].unflatten(-1, (self.spec.kv_heads, -1)).transpose(0, 1)
                array[lanes.first_slot + b, :, cached : cached + n] = heads.numpy()

    def _run(self, name: str, given: dict[str, npt.NDArray[Any]], lanes: Lanes, cache: KVCache) -> F32:
        stage = self.stages[name]
        if isinstance(lanes, PackedLanes):
            return self._run_packed(name, given, lanes, cache)
        totals = lanes.cached + lanes.tokens
        cos, sin = self._rotary.rows(cache.capacity)
        values: dict[str, npt.NDArray[Any]] = {
            **given,
            "positions": lanes.positions,
            "last": totals - 1,
            "longest": totals.max(keepdims=True),
            "tokens": lanes.tokens,
            "cos": cos,
            "sin": sin,
        }
        if stage.shared:
            values["fresh"] = np.array([fresh_tokens(lanes)])
        slots = slice(lanes.first_slot, lanes.first_slot + len(lanes.depth))
        for i, pair in enumerate(cache.stages[name]):
            for side, array in zip(("key", "value"), pair, strict=True):
                values[f"past.{i}.{side}"] = array[slots]
        with torch.no_grad():
            out = stage(*(torch.from_numpy(np.ascontiguousarray(values[n])) for n in stage.input_names))
        for i, pair in enumerate(cache.stages[name]):
            for array, new in zip(pair, out[1 + 2 * i : 3 + 2 * i], strict=True):
                array[slots] = new.numpy()
        result: F32 = out[0].numpy()
        return result

    def _run_packed(
        self, name: str, given: dict[str, npt.NDArray[Any]], lanes: PackedLanes, cache: KVCache
    ) -> F32:
        """The same lanes unpacked: what packing must not change."""
        plain = Lanes(lanes.depth, lanes.cached, lanes.tokens, lanes.positions, lanes.first_slot)
        first = next(iter(given))
        padded = {**given, first: lanes.pad(given[first])}
        if "depth" in given:
            padded["depth"] = lanes.depth
        if self.stages[name].shared:
            return self._run_apart(given[first], lanes, cache)
        if name != "epilogue":
            return lanes.pack(self._run(name, padded, plain, cache))
        return self._run(name, {**padded, "rows": lanes.kept[given["rows"]]}, plain, cache)

    def _run_apart(self, state: F32, lanes: PackedLanes, cache: KVCache) -> F32:
        """A block whose depths share K and V takes no idle lanes, so each lane runs by itself."""
        found, start = [], 0
        for b, n in enumerate(lanes.tokens.tolist()):
            if n:
                one = slice(b, b + 1)
                arrays = (lanes.depth[one], lanes.cached[one], lanes.tokens[one], lanes.positions[one, :n])
                alone = Lanes(*arrays, lanes.first_slot + b)
                rows = state[None, start : start + n, 0]
                found.append(self._run("block", {"state": rows, "depth": alone.depth}, alone, cache)[0])
                start += n
        return np.concatenate(found)[:, None]
