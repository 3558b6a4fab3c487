"""The torch modules behind the Backend protocol: the oracle that every artifact is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.backend import F32, I64, Lanes
from ..runtime.kv import KVCache
from ..runtime.spec import Spec
from .fused import Numerics
from .stages import STAGES, Block, Epilogue, Prologue


class Oracle:
    """Stage modules over stored weights, called with numpy arrays like an engine."""

    name = "torch"

    def __init__(self, spec: Spec, weights: dict[str, Tensor], numerics: Numerics) -> None:
        self.spec = spec
        self.stages: dict[str, Prologue | Block | Epilogue] = {
            name: kind(spec, weights, numerics).eval() for name, kind in STAGES.items()
        }

    @staticmethod
    def open(spec: Spec, weights: Path, numerics: Numerics) -> Oracle:
        """Over a weights file, mapped rather than read."""
        return Oracle(spec, load_file(weights), numerics)

    def new_cache(self, sequences: int, capacity: int) -> KVCache:
        """Caches of ``sequences`` × ``capacity`` tokens, zeroed."""
        return KVCache.allocate(self.spec, sequences, capacity)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]."""
        return self._run("prologue", {"ids": ids}, lanes, cache)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D]."""
        return self._run("block", {"state": state, "depth": lanes.depth}, lanes, cache)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D], rows [N] → logits [N, V]."""
        return self._run("epilogue", {"state": state, "rows": rows}, lanes, cache)

    def _run(self, name: str, given: dict[str, npt.NDArray[Any]], lanes: Lanes, cache: KVCache) -> F32:
        stage = self.stages[name]
        totals = lanes.cached + lanes.tokens
        values: dict[str, npt.NDArray[Any]] = {
            **given,
            "positions": lanes.positions,
            "last": totals - 1,
            "longest": totals.max(keepdims=True),
            "tokens": lanes.tokens,
        }
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
