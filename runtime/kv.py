"""KV caches: preallocated once, written in place, truncated by a length.

A cache belongs to one layer of one stage's graph and is K, V [slots, K heads, capacity, head_dim] float32.
The block has R slots a sequence (slot = sequence·R + depth), the prologue and epilogue one a sequence.
np.zeros maps pages only when they are written, so capacity costs address space, not memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .spec import Spec, stage_layers

F32 = npt.NDArray[np.float32]
STAGES = ("prologue", "block", "epilogue")


@dataclass(frozen=True, eq=False)
class KVCache:
    """``stages[name]`` is a list of (K, V), one pair a layer of that stage's graph."""

    stages: dict[str, list[tuple[F32, F32]]]
    capacity: int
    depths: int

    @staticmethod
    def allocate(spec: Spec, sequences: int, capacity: int) -> KVCache:
        """Zeroed caches for ``sequences`` × ``capacity`` tokens."""
        depths = spec.depths
        stages = {}
        for stage in STAGES:
            slots = sequences * (depths if stage == "block" else 1)
            shape = (slots, spec.kv_heads, capacity, spec.head_dim)
            stages[stage] = [
                (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
                for _ in range(stage_layers(spec, stage))
            ]
        return KVCache(stages, capacity, depths)

    def slot(self, stage: str, sequence: int, depth: int) -> int:
        """The slot of ``sequence`` at ``depth`` in the caches of ``stage``."""
        return sequence * self.depths + depth if stage == "block" else sequence

    @property
    def nbytes(self) -> int:
        """Bytes reserved when every slot is full."""
        return sum(k.nbytes + v.nbytes for pairs in self.stages.values() for k, v in pairs)
