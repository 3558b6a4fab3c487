"""What the package of a model holds: functions, states, and the row of each layer in them.

K and V are Core ML states [rows, K heads, C, head_dim] float16, one pair a stage that has layers. A row belongs to one
application of a layer: in the block's it is depth · layers + layer (layer, where the depths share K and V), in the
prologue's and epilogue's the layers in order. ``embed`` runs the layers before the loop and ``head`` those after it.

C is the context and one chunk more, so that the padding of a chunk never runs over the end; padded tokens leave rows
behind the last valid one, which nobody sees before they are overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...runtime.model.program import STAGES
from ...runtime.model.rotary import RotaryTables
from ...runtime.model.rotation import Rotation
from ...runtime.spec import Spec, stage_layers

F16 = npt.NDArray[np.float16]

CHUNK = 16
"""Tokens of a prefill call."""
_ALIGN = 32  # sizes of states that Core ML's units like


@dataclass(frozen=True)
class Plan:
    """The package of ``spec``."""

    spec: Spec
    chunk: int = CHUNK

    @property
    def capacity(self) -> int:
        """C: tokens of a state."""
        return -(-(self.spec.context_length + self.chunk - 1) // _ALIGN) * _ALIGN

    @cached_property
    def turns(self) -> tuple[F16, F16]:
        """cos and sin [context, head_dim/2] of every position: the ANE has no arithmetic to make them from."""
        spec = self.spec
        turns = Rotation(spec.head_dim, spec.rope_theta)
        cos, sin = RotaryTables(turns, np.float16).rows(spec.context_length)
        return cos[: spec.context_length].astype(np.float16), sin[: spec.context_length].astype(np.float16)

    @property
    def fills(self) -> bool:
        """Can a token that left early be missing K and V? With a sliding window too: a token keeps its row here."""
        return self.spec.depths > 1 and not self.spec.shares_kv

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions, the default one first."""
        depths = range(self.spec.depths)
        fills = [f"kvfill_d{d}" for d in depths[:-1]] if self.fills else []
        return ("decode_all", "prefill", "embed", *(f"decode_d{d}" for d in depths), *fills, "head")

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Shape of every state, by name; the same in all functions."""
        counts = {stage: stage_layers(self.spec, stage) for stage in STAGES}
        counts["block"] *= self.spec.kv_slots if self.spec.depths > 1 else 1
        return {
            f"{stage}_{side}": (count, self.spec.kv_heads, self.capacity, self.spec.head_dim)
            for stage, count in counts.items()
            for side in ("keys", "values")
            if count
        }

    def applications(self, stage: str, depth: int = 0) -> list[Application]:
        """What one pass of ``stage`` applies, in order; ``depth`` is the block's."""
        spec, stages = self.spec, self.spec.stages
        numbers = {"prologue": stages.prologue, "block": stages.block, "epilogue": stages.epilogue}[stage]
        looped = stage == "block" and stages.depths > 1
        count = stage_layers(spec, stage)
        found: list[Application] = []
        for s in numbers:
            segment = spec.segments[s]
            for repeat in [depth] if looped else range(segment.repeats):
                for j in range(segment.layers):
                    row = len(found) + (0 if spec.shares_kv or not looped else depth * count)
                    reads = looped and depth > 0 and spec.shares_kv
                    norm = repeat if segment.per_repeat_norms else None
                    found.append(Application(stage, s, f"segments.{s}.layers.{j}", repeat, norm, row, reads))
        return found


@dataclass(frozen=True)
class Application:
    """One application of a physical layer: its weights, the repeat of its deltas, its row in the stage's states.

    ``norm``: the row of its norms' weights, where they have rows. ``reads``: it makes no K and V, its row of the states
    holds those of depth 0.
    """

    stage: str
    segment: int
    prefix: str
    repeat: int
    norm: int | None
    row: int
    reads: bool
