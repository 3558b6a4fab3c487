"""KV caches: preallocated once, written in place, truncated by a length.

A cache belongs to one layer of one stage's graph and is K, V [slots, K heads, capacity, head_dim] float32.
The block has R slots a sequence (slot = sequence·R + depth), the prologue and epilogue one a sequence.
All caches of a sequence lie in one piece of memory, so choose the capacity no larger than what is needed.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from math import prod

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
        shapes = {
            stage: (sequences * (depths if stage == "block" else 1), spec.kv_heads, capacity, spec.head_dim)
            for stage in STAGES
        }
        layers = {stage: stage_layers(spec, stage) for stage in STAGES}
        arena = _zeros(sum(2 * layers[stage] * prod(shapes[stage]) for stage in STAGES))
        start = 0
        stages: dict[str, list[tuple[F32, F32]]] = {}
        for stage in STAGES:
            size = prod(shapes[stage])
            arrays = []
            for _ in range(2 * layers[stage]):
                arrays.append(arena[start : start + size].reshape(shapes[stage]))
                start += size
            stages[stage] = list(zip(arrays[::2], arrays[1::2], strict=True))
        return KVCache(stages, capacity, depths)

    def slot(self, stage: str, sequence: int, depth: int) -> int:
        """The slot of ``sequence`` at ``depth`` in the caches of ``stage``."""
        return sequence * self.depths + depth if stage == "block" else sequence

    @property
    def nbytes(self) -> int:
        """Bytes reserved when every slot is full."""
        return sum(k.nbytes + v.nbytes for pairs in self.stages.values() for k, v in pairs)


def _zeros(size: int) -> F32:
    """Zeros [size] in huge pages where the system has them.

    Decoding reads a few rows of hundreds of (layer, head) pairs: in small pages each costs a page walk, which
    is some 5% of a token (edgeloop compare).
    """
    memory = mmap.mmap(-1, max(4 * size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32, count=size)
