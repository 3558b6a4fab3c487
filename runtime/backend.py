"""The contract between the depth loop and an engine.

An engine runs three stages. Each call takes B lanes × S new tokens. A lane is one (sequence, depth) pair
and owns one KV slot in every cache of the stage; the lanes of a call use the slots ``first_slot …
first_slot + B − 1``. Prefill is 1 lane × S tokens, decode 1 × 1, and one call may mix depths.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .kv import KVCache
from .spec import Spec

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lanes:
    """The lanes of one call.

    depth [B] int64: which deltas apply. cached [B] int32: tokens already valid in the lane's slot (T).
    tokens [B] int32: how many of the S new tokens are valid (the rest is right padding; 0 = idle lane).
    positions [B, S] int64: true positions, for RoPE. last [B] and longest [1] int32 follow from them: the index of
    each lane's last token after the call, and the largest number of tokens of a lane.

    A caller may keep a Lanes and write its arrays in place, followed by ``refresh``: engines keep what they prepared
    for it. ``at`` makes the lanes of another stage or depth that share those arrays.
    """

    depth: I64
    cached: I32
    tokens: I32
    positions: I64
    first_slot: int = 0
    last: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    longest: I32 = field(default_factory=lambda: np.zeros(1, np.int32))

    def __post_init__(self) -> None:
        for name, dtype in (
            ("depth", np.int64),
            ("cached", np.int32),
            ("tokens", np.int32),
            ("positions", np.int64),
        ):
            # Engines take addresses. What is right already stays the caller's own array.
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        if len(self.last) != len(self.cached):
            object.__setattr__(self, "last", np.empty_like(self.cached))
            self.refresh()

    def refresh(self) -> None:
        """Bring ``last`` and ``longest`` up to date with ``cached`` and ``tokens``."""
        np.add(self.cached, self.tokens, out=self.last)
        self.longest[0] = self.last.max()
        np.subtract(self.last, 1, out=self.last)

    def at(self, depth: int, first_slot: int) -> Lanes:
        """The same lanes, all at ``depth`` and in other slots; the other arrays are shared."""
        return replace(self, depth=np.full_like(self.depth, depth), first_slot=first_slot)

    @staticmethod
    def single(depth: int, cached: int, tokens: int, slot: int) -> Lanes:
        """One lane whose S = ``tokens`` new tokens follow directly on the ``cached`` ones."""
        return Lanes(
            depth=np.array([depth], np.int64),
            cached=np.array([cached], np.int32),
            tokens=np.array([tokens], np.int32),
            positions=np.arange(cached, cached + tokens, dtype=np.int64)[None],
            first_slot=slot,
        )


class Backend(Protocol):
    """What an engine provides. Returned arrays are valid until the next call of the same stage."""

    name: str
    spec: Spec

    def new_cache(self, sequences: int, capacity: int) -> KVCache:
        """Caches of ``sequences`` sequences × ``capacity`` tokens, zeroed."""
        ...

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]: embedding and the layers before the loop."""
        ...

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D]: the looped layers once, each lane at its own depth."""
        ...

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → logits [N, V] of the flat rows ``rows`` [N] of [B·S]: layers after the loop, norm, head."""
        ...
