"""The arrays of a pass, made once for each shape and written in place, so that an engine may keep its bindings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..engines.backend import F32, I64, Lanes
from ..engines.kv import KVCache


@dataclass(frozen=True, eq=False)
class PassLayout:
    """A block call of n tokens of one row, each at a depth of its own.

    ``lanes``: from the shallowest of the depths to the deepest; those between that have no token are idle. ``states``
    [B, 1, D]: the block's input. ``places`` [n]: the lane of each token.
    """

    lanes: Lanes
    states: F32
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ReadLayout:
    """An epilogue call of one lane of n tokens at neighbouring positions. ``states`` [1, n, D]: its input."""

    lanes: Lanes
    states: F32
    rows: I64
    """[n]: 0, 1, …"""
    _picks: dict[tuple[int, ...], I64] = field(default_factory=dict)

    def picks(self, rows: tuple[int, ...]) -> I64:
        """Return ``rows`` as an array, the same one every time."""
        found = self._picks.get(rows)
        if found is None:
            found = self._picks[rows] = np.array(rows)
        return found


class PassLayouts:
    """The layouts of one sequence of a cache, by shape."""

    def __init__(self, cache: KVCache, sequence: int, depths: int, width: int) -> None:
        self._cache, self._sequence, self._depths, self._width = cache, sequence, depths, width
        self._passes: dict[tuple[int, ...], PassLayout] = {}
        self._reads: dict[int, ReadLayout] = {}
        self._single: dict[tuple[str, int, int], Lanes] = {}

    def block(self, depths: tuple[int, ...]) -> PassLayout:
        """Return the layout of a block call with one token at each of ``depths``, which are all different."""
        layout = self._passes.get(depths)
        if layout is None:
            low, count = min(depths), max(depths) - min(depths) + 1
            places = tuple(depth - low for depth in depths)
            tokens = np.zeros(count, np.int32)
            tokens[list(places)] = 1
            layout = self._passes[depths] = PassLayout(
                Lanes(
                    np.arange(low, low + count),
                    np.ones(count, np.int32),  # of idle lanes too: the operator takes no empty slot
                    tokens,
                    np.zeros((count, 1), np.int64),
                    self._cache.slot("block", self._sequence, low),
                ),
                np.zeros((count, 1, self._width), np.float32),
                places,
            )
        return layout

    def read(self, rows: int) -> ReadLayout:
        """Return the layout of an epilogue call over ``rows`` rows."""
        layout = self._reads.get(rows)
        if layout is None:
            last = self._depths - 1
            layout = self._reads[rows] = ReadLayout(
                Lanes.single(last, 0, rows, self._cache.slot("epilogue", self._sequence, last)),
                np.zeros((1, rows, self._width), np.float32),
                np.arange(rows),
            )
        return layout

    def single(self, stage: str, depth: int, cached: int, positions: I64) -> Lanes:
        """Return one lane of ``stage`` at ``depth`` with tokens at ``positions`` [n] behind ``cached`` ones."""
        n = len(positions)
        lanes = self._single.get((stage, depth, n))
        if lanes is None:
            lanes = self._single[stage, depth, n] = Lanes.single(
                depth, 0, n, self._cache.slot(stage, self._sequence, depth)
            )
        lanes.cached[0] = cached
        lanes.positions[0] = positions
        lanes.refresh()
        return lanes
