"""The reference engine: a program interpreted in plain numpy, one lane after the other, op by op.

Nothing here is clever, so that it can be read against a paper. Every other engine is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from ...bundle.folder import Bundle
from ...errors import UsageError
from ...model.codec import GroupSizes
from ...model.program import Program
from ...model.sizes import head_sizes
from ...model.stored import Array, StoredWeights, read_tensors
from ...model.transform import at_depth, keys_values
from ..backend import F32, I64, Lanes, can_fill, check_fill, fresh_tokens
from ..kv import KVCache
from ..packed import PackedLanes
from . import CAPABILITIES
from .lane import Activations, Inputs, Lane, Results, Slot
from .ops import compute

WEIGHTS_TARGET = "onnx"
"""The target whose weights file this engine reads."""


class ReferenceBackend:
    """The Backend protocol in numpy. Slow, and right: float32 arithmetic on the stored weights."""

    name = "reference"
    can = CAPABILITIES

    def __init__(
        self,
        program: Program,
        stored: Mapping[str, Array],
        group_sizes: GroupSizes,
        *,
        activations: Activations | None = None,
        tables_as: npt.DTypeLike = np.float32,
        inputs: Inputs | None = None,
    ) -> None:
        """``stored``: the tensors by name (``model/stored.py``). BundleError when one is missing.

        To compute what another engine does: ``activations`` are what it makes of the inputs of quantized matrices,
        ``tables_as`` is the type of its rotary tables. ``inputs`` is called with those of every matrix.
        """
        self.program = program
        self._weights = StoredWeights(program.weights, stored, group_sizes)
        self._activations, self._tables_as, self._inputs = activations, tables_as, inputs
        self._results: Results | None = None
        self._carries = tuple(carry.width for carry in program.loop.carries)
        self._head = head_sizes(program)
        self._blocks = [at_depth(program, depth) for depth in range(program.depths)]
        self._fills = [keys_values(block) for block in self._blocks] if can_fill(program) else []

    @staticmethod
    def open(bundle: Bundle) -> ReferenceBackend:
        """Return the engine with the model of ``bundle``; BundleError when its weights cannot be read."""
        stored = read_tensors(bundle.path(bundle.manifest.targets[WEIGHTS_TARGET].weights))
        return ReferenceBackend(bundle.program, stored, bundle.group_sizes)

    def with_activations(self, activations: Activations | None) -> ReferenceBackend:
        """Return an engine of the same weights that rounds inputs by ``activations``."""
        other = copy(self)
        other._activations = activations
        return other

    def with_results(self, results: Results | None) -> ReferenceBackend:
        """Return an engine of the same weights that keeps of each op's result what ``results`` makes of it."""
        other = copy(self)
        other._results = results
        return other

    def forget(self) -> None:
        """Drop dequantized matrices, which are made again when they are used."""
        self._weights.forget()

    def close(self) -> None:
        """Do nothing: there are only arrays, which the interpreter frees."""
        self.forget()

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Return zeroed caches of ``sequences`` × ``capacity`` tokens."""
        return KVCache.allocate(self.program, sequences, capacity, slots)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the state [B, S, D] of ids [B, S]."""
        return self._run("prologue", ids[..., None], lanes, cache)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after one pass, each lane at its own depth."""
        if self.program.shares_kv and not isinstance(lanes, PackedLanes):
            fresh_tokens(lanes)  # what it cannot take, no engine can
        return self._run("block", state, lanes, cache)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the logits [N, V] of the flat rows ``rows`` [N] of state [B, S, D]."""
        state = self._run("epilogue", state, lanes, cache)
        values = split(state.reshape(-1, state.shape[-1])[rows], self._head)
        (logits,) = compute(self.program.head, self._lane(rows), *values)
        return logits

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write K/V of ``state`` [B, S, D], or the rows of packed lanes, as every layer's input, into their
        slots."""
        check_fill(self.program)
        state = lanes.pad(state) if isinstance(lanes, PackedLanes) else state
        for b in np.flatnonzero(lanes.tokens).tolist():
            lane = self._of(lanes, b, "block", cache)
            n, rows = len(lane.positions), slice(lane.cached, lane.cached + len(lane.positions))
            made = iter(compute(self._fills[lane.depth], lane, *split(state[b, :n], self._carries)))
            for slot in lane.own:
                for kept in (slot.keys, slot.values):
                    kept[:, rows] = next(made).reshape(n, len(kept), -1).transpose(1, 0, 2)

    def _run(self, name: str, given: npt.NDArray[Any], lanes: Lanes, cache: KVCache) -> F32:
        """Return the output of the stage ``name`` on the valid tokens of each lane; padded rows are zeros."""
        packed = lanes if isinstance(lanes, PackedLanes) else None
        given = packed.pad(given) if packed else given
        width = sum(self._head if name == "epilogue" else self._carries)
        out = np.zeros((*given.shape[:2], width), np.float32)
        for b in np.flatnonzero(lanes.tokens).tolist():
            lane, n = self._of(lanes, b, name, cache), int(lanes.tokens[b])
            if name == "prologue":
                types = np.zeros(n, np.int64) if lanes.types is None else lanes.types[b, :n]
                hosts = {"ids": given[b, :n, 0], "positions": lane.positions, "types": types}
                values: list[Any] = [hosts[value] for value in self.program.prologue.inputs]
            else:
                values = list(split(given[b, :n], self._carries))
            stage = self._blocks[lane.depth] if name == "block" else self.program.stage(name)
            out[b, :n] = np.concatenate(compute(stage, lane, *values), axis=1)
            if lane.last_rows:
                cache.keep_rows(name, lanes.first_slot + b, lane.cached, lane.cached + n, lane.last_rows)
        return packed.pack(out) if packed else out

    def _of(self, lanes: Lanes, b: int, stage: str, cache: KVCache) -> Lane:
        """Return lane ``b`` of ``lanes`` with its slots of ``stage``."""
        depth, cached, n = int(lanes.depth[b]), int(lanes.cached[b]), int(lanes.tokens[b])
        own = lanes.first_slot + b
        last_rows = cache.rows_after(stage, own, cached) if cached else {}
        if last_rows is None:
            raise UsageError(
                f"{cached} tokens before the next one, but the row that is kept for it is that of token "
                f"{cache.last_rows[stage, own][0]}; this model's shift takes tokens in order, start again"
            )
        first = own - depth % cache.slots if stage == "block" else own
        slots = ([Slot(k[at], v[at], cache.window) for k, v in cache.stages[stage]] for at in (own, first))
        return self._lane(
            lanes.positions[b, :n],
            depth=depth,
            cached=cached,
            own=next(slots),
            first=next(slots),
            last_rows=dict(last_rows),
            block=0 if cached else n,
        )

    def _lane(self, positions: I64, **seen: Any) -> Lane:
        """Return a lane of this model; ``seen``: what else ops read."""
        return Lane(
            self._weights,
            positions,
            activations=self._activations,
            results=self._results,
            tables_as=self._tables_as,
            inputs=self._inputs,
            **seen,
        )


def split(state: F32, widths: Sequence[int]) -> list[F32]:
    """Return the values that lie side by side in a state [n, D]."""
    return np.split(state, np.cumsum(widths)[:-1], axis=1)
