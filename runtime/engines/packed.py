"""Packed lanes: calls that serve many sequences compute only the valid rows of their lanes.

A cache has a slot for each (sequence, depth), and a sequence is at one depth at a time: of the lanes between the first
and the last that are wanted most are idle. Packed lanes keep them, because attention takes a range of slots, but states
have no rows for them: ids are [N, 1] and states [N, 1, D], where N is the sum of ``tokens``, lane after lane. Measured
with onnxruntime, 4 valid rows among 12 lanes cost 1.7 to 2.4 times as much as 4 of 4 when all 12 are computed, and as
much as 4 of 4 when packed.

Where depths share K/V an idle lane is allowed too, unlike in ``backend.py``: at depth 0 row ``cached`` of its slot
may be overwritten, so there must be one. Valid lanes are then of one token, or there is only one lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UsageError
from .backend import F32, I64, Lanes

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class PackedLanes(Lanes):
    """B lanes × S tokens, of which N = ``rows``, the sum of ``tokens`` when they are made, are valid.

    row_depth [N] is the depth of each row, spread [B, S] the row of each token (0 for padding), kept [N] the index
    of each row in the flattened B·S. They follow from the other arrays: call ``refresh`` after writing those.
    """

    shared: bool = False
    """Depths share K/V: a call is one of depth 0 (``fresh``) or one of deeper ones."""
    fresh: bool = True
    rows: int = field(init=False, default=0)
    row_depth: I64 = field(default_factory=lambda: _NONE)
    spread: I64 = field(default_factory=lambda: _NONE)
    spread_new: I64 = field(default_factory=lambda: _NONE)
    kept: I64 = field(default_factory=lambda: _NONE)
    _steps: I64 = field(default_factory=lambda: _NONE)

    def __post_init__(self) -> None:
        batch, length = self.positions.shape
        rows = int(self.tokens.sum())
        spread = np.zeros((batch, length), np.int64)
        made = {
            "rows": rows,
            "row_depth": np.zeros(rows, np.int64),
            "spread": spread,
            "spread_new": spread[:, : length if self.fresh else 0],
            "kept": np.zeros(rows, np.int64),
            "_steps": np.arange(rows),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    @staticmethod
    def empty(
        lanes: int, length: int, rows: int, first_slot: int = 0, *, shared: bool = False, fresh: bool = True
    ) -> PackedLanes:
        """Return lanes to be written to and refreshed, which will have ``rows`` rows in all."""
        # Any tokens that make as many.
        tokens = np.clip(rows - length * np.arange(lanes), 0, length).astype(np.int32)
        depth, cached = np.zeros(lanes, np.int64), np.zeros(lanes, np.int32)
        positions = np.zeros((lanes, length), np.int64)
        return PackedLanes(depth, cached, tokens, positions, first_slot, shared=shared, fresh=fresh)

    @property
    def state_shape(self) -> tuple[int, int]:
        """(N, 1)."""
        return self.rows, 1

    def refresh(self) -> None:
        """Recompute all arrays that follow from others; UsageError when ``tokens`` do not sum to ``rows``."""
        super().refresh()
        length = self.spread.shape[1]
        valid = np.flatnonzero(np.arange(length) < self.tokens[:, None])
        if len(valid) != self.rows:
            raise UsageError(f"packed lanes of {self.rows} rows with {len(valid)} tokens; make others")
        self.kept[:] = valid
        self.spread.fill(0)
        self.spread.reshape(-1)[valid] = self._steps
        self.row_depth[:] = self.depth[valid // length]
        if self.shared:
            np.maximum(self.last, self.cached, out=self.last)  # an idle lane writes behind what it holds
            self.longest[0] = self.last.max() + 1
        else:
            np.maximum(self.last, 0, out=self.last)

    def place(
        self, lanes: Sequence[int], depth: Sequence[int], cached: Sequence[int], positions: Sequence[int]
    ) -> None:
        """Give ``lanes``, N ascending ones, a token each and the others none, and refresh; S must be 1.

        Where slots are shared, ``cached`` of the others must be right already. Decoding comes by here at every tick:
        a third of the time of writing the arrays and of ``refresh``.
        """
        at = self.kept
        at[:] = lanes
        self.tokens.fill(0)
        self.tokens[at] = 1
        self.cached[at] = cached
        self.depth[at] = self.row_depth[:] = depth
        self.positions[at, 0] = positions
        self.spread.fill(0)
        self.spread[at, 0] = self._steps
        if self.shared:
            self.last[:] = self.cached  # of an idle lane too: it writes behind what it holds
            self.longest[0] = self.last.max() + 1
        else:
            self.last.fill(0)
            self.last[at] = cached
            self.longest[0] = max(cached) + 1

    def pad(self, rows: F32) -> F32:
        """Return rows [N, 1, …] as [B, S, …], with zeros where there is no token."""
        out = np.zeros((self.spread.size, *rows.shape[2:]), rows.dtype)
        out[self.kept] = rows[:, 0]
        return out.reshape(*self.spread.shape, *rows.shape[2:])

    def pack(self, state: F32) -> F32:
        """Return the valid rows [N, 1, D] of state [B, S, D]."""
        rows: F32 = state.reshape(self.spread.size, 1, -1)[self.kept]
        return rows
