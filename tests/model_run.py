"""A program run for one sequence with random weights: stage by stage with the reference engine's ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeloop.runtime.engines.reference.lane import Lane, Slot
from edgeloop.runtime.engines.reference.ops import run
from edgeloop.runtime.model.ops import Attend, AttendTwice
from edgeloop.runtime.model.program import Program, Stage
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.transform import TensorSource, at_depth
from edgeloop.runtime.model.weights import Matrix, Vector, Weight, tensors

F32 = npt.NDArray[np.float32]
Tensors = dict[str, F32]
ROWS = 32


def random_tensors(weights: Mapping[str, Weight], seed: int = 0) -> Tensors:
    """Stored tensors of ``weights``."""
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(tensor.shape) * 0.4).astype(np.float32)
        for name, tensor in tensors(weights)
    }


def slots(stage: Stage) -> list[Slot]:
    """Empty ones for the caches of ``stage``."""
    found = {
        op.cache: (op.kv_heads, ROWS, op.head_dim)
        for op in stage.ops
        if isinstance(op, Attend | AttendTwice) and op.cache is not None
    }
    return [Slot(*(np.zeros(found[number], np.float32) for _ in range(2))) for number in sorted(found)]


def values(stage: Stage, lane: Lane, *given: npt.NDArray[Any]) -> dict[str, Any]:
    """Everything that ``stage`` computes, by name."""
    found: dict[str, Any] = dict(zip(stage.inputs, given, strict=True))
    for op in stage.ops:
        run(op, lane, found)
    return found


@dataclass
class Model:
    """A program, its weights, and what one sequence has in its caches."""

    program: Program
    stored: Tensors
    kept: dict[tuple[str, int], tuple[list[Slot], dict[int, F32]]] = field(default_factory=dict)
    cached: int = 0

    def lane(self, name: str, stage: Stage, depth: int, count: int) -> Lane:
        """``count`` new tokens at ``depth`` of the stage ``name``."""
        own = self.kept.setdefault((name, depth), (slots(stage), {}))
        first = self.kept.get((name, 0), own)
        return Lane(
            StoredWeights(self.program.weights, self.stored, 0),
            np.arange(self.cached, self.cached + count),
            depth,
            self.cached,
            own[0],
            first[0],
            own[1],
            0 if self.cached else count,
        )

    def run(self, ids: list[int]) -> F32:
        """Logits [n, V] of new tokens, depth by depth."""
        n, program = len(ids), self.program
        hosts = {
            "ids": np.array(ids),
            "positions": np.arange(self.cached, self.cached + n),
            "types": types_of(n),
        }
        state = self._outputs("prologue", program.prologue, 0, [hosts[i] for i in program.prologue.inputs])
        for depth in range(program.depths):
            state = self._outputs("block", at_depth(program, depth), depth, state)
        state = self._outputs("epilogue", program.epilogue, 0, state)
        (logits,) = self._outputs("head", program.head, 0, state)
        self.cached += n
        return np.asarray(logits, np.float32)

    def run_stage(self, stage: Stage, ids: list[int]) -> F32:
        """Logits [n, V] of ``stage``, which is the whole model."""
        hosts = {"ids": np.array(ids), "positions": np.arange(len(ids)), "types": types_of(len(ids))}
        (logits,) = self._outputs("whole", stage, 0, [hosts[i] for i in stage.inputs])
        return np.asarray(logits, np.float32)

    def _outputs(self, name: str, stage: Stage, depth: int, given: list[Any]) -> list[Any]:
        lane = self.lane(name, stage, depth, len(given[0]))
        lane = replace(lane, first=lane.own) if name == "whole" else lane
        found = values(stage, lane, *given)
        return [found[value] for value in stage.outputs]


def types_of(n: int) -> npt.NDArray[np.int64]:
    """Types of n tokens, of two."""
    return np.arange(n) % 2


def canonical(weights: Mapping[str, Weight], stored: Tensors) -> Tensors:
    """The canonical tensors of stored ones: what a family supplies."""
    found: Tensors = {}
    for name, weight in weights.items():
        for full, tensor in tensors({name: weight}):
            if len(tensor.parts) == 1 and not (isinstance(weight, Matrix) and weight.copies > 1):
                found[tensor.parts[0]] = stored[full]
                continue
            if tensor.kind == "delta":
                found[tensor.parts[0]] = stored[full]
                continue
            assert isinstance(weight, Matrix)
            rows = stored[full].reshape(weight.copies, weight.rows, *stored[full].shape[1:])
            pieces = np.split(rows, np.cumsum(list(weight.parts.values()))[:-1], axis=1)
            for part, piece in zip(tensor.parts, pieces, strict=True):
                found[part] = piece if weight.copies > 1 else piece[0]
    return found


def twin_tensors(
    twin: Program, sources: Mapping[str, TensorSource], weights: Mapping[str, Weight], stored: Tensors
) -> Tensors:
    """The stored tensors of an unrolled ``twin``, deltas merged, from those of the model with ``weights``."""
    theirs = canonical(weights, stored)
    return {
        full: np.concatenate([_merged(sources[part], weights, theirs) for part in tensor.parts])
        for full, tensor in tensors(twin.weights)
    }


def _merged(source: TensorSource, weights: Mapping[str, Weight], theirs: Tensors) -> F32:
    weight, value = weights[source.weight], theirs[source.tensor]
    if source.at is None:
        return (
            value.reshape(-1, *value.shape[2:]) if isinstance(weight, Matrix) and weight.copies > 1 else value
        )
    if isinstance(weight, Vector):
        return value[source.at] if weight.rows is not None else value
    value = value[source.at] if weight.copies > 1 else value
    stem, _, side = source.tensor.rpartition(".")
    if side == "weight" and f"{stem}.lora_a" in theirs:
        value = value + theirs[f"{stem}.lora_b"][source.at] @ theirs[f"{stem}.lora_a"][source.at]
        if f"{stem}.lora_scale" in theirs:
            value = value * theirs[f"{stem}.lora_scale"][source.at][:, None]
    return value
