"""The position of a program's K/V in the states of its package.

K/V are Core ML states [rows, K heads, C, head_dim] float16: a pair for the caches of a stage, and another one where
some of them have other heads. A row belongs to one cache at one depth: in the block's it is depth · caches + number
(number alone, where depths share K/V), in the prologue's and epilogue's the caches in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...model.program import STAGES, Program

SIDES = ("keys", "values")


@dataclass(frozen=True)
class CacheState:
    """The states that hold K/V of a cache at a depth, and its row in them."""

    keys: str
    values: str
    row: int


class Layout:
    """The states of ``program``."""

    def __init__(self, program: Program) -> None:
        self._slots = {"block": program.kv_slots}
        self._kinds = {
            stage: [(shape.kv_heads, shape.head_dim) for shape in program.caches(stage)] for stage in STAGES
        }

    def shapes(self, capacity: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every state by its name, for ``capacity`` tokens."""
        return {
            name: (kinds.count(kind) * self._slots.get(stage, 1), kind[0], capacity, kind[1])
            for stage, kinds in self._kinds.items()
            for number, kind in enumerate(dict.fromkeys(kinds))
            for name in _names(stage, number)
        }

    def caches(self, stage: str) -> int:
        """Return how many caches ``stage`` has."""
        return len(self._kinds[stage])

    def place(self, stage: str, cache: int, depth: int = 0) -> CacheState:
        """Return the states and the row of ``cache`` of ``stage`` at ``depth``."""
        kinds = self._kinds[stage]
        kind = kinds[cache]
        own = depth if self._slots.get(stage, 1) > 1 else 0
        row = own * kinds.count(kind) + kinds[:cache].count(kind)
        return CacheState(*_names(stage, list(dict.fromkeys(kinds)).index(kind)), row)


def _names(stage: str, number: int) -> tuple[str, str]:
    tail = f"_{number}" if number else ""
    keys, values = (f"{stage}_{side}{tail}" for side in SIDES)
    return keys, values
