"""The masks of a method: which new rows and which cache rows each of its rows sees, written in place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..backend import F32
from .kinds import Mask

MASKED = np.float32(-1e9)
I32 = npt.NDArray[np.int32]


class SeenRows:
    """For each lane a mask [1, 1 or rows, new + cache_rows], as ``export/lower/xnnpack_attend.py`` describes it.

    ``most_rows``: of a cache, of which ``cache_rows`` are laid out. ``slots``: of each row, or the one of a chunk.
    """

    def __init__(
        self, mask: Mask, rows: int, cache_rows: int, most_rows: int, slots: tuple[int, ...], chunk: bool
    ) -> None:
        self._mask, self._rows, self._slots, self._chunk = mask, rows, slots, chunk
        self._most_rows = most_rows
        self._cache_rows = cache_rows if mask.cached else 0
        shape = (1, rows if chunk else 1, self._cache_rows + (rows if mask.fresh else 0))
        self.arrays: list[F32] = [np.zeros(shape, np.float32) for _ in slots]
        # What the mask of a single row says now: from one token to the next little of it changes.
        self._shown = -1

    def show(self, at: I32, n: int) -> None:
        """Set the masks for ``n`` new rows that go to rows ``at`` [n] of the caches."""
        if not self._mask.cached:
            self._show_new(n)
        elif self._chunk:
            self._show_chunk(at, n)
        elif n > 1 or self._mask.window:
            self._show_rows(at)
        else:
            self._show_row(int(at[0]))

    def _show_row(self, at: int) -> None:
        """Let a single row see itself and the ``at`` rows before it: usually one more than the last time."""
        seen, before = self.arrays[0][0, 0], self._shown
        first, end = (1, at + 1) if self._mask.fresh else (0, at + 1)
        if before < 0:
            seen[first:] = MASKED
            before = first
        if end < before:
            seen[end:before] = MASKED
        else:
            seen[before:end] = 0
        self._shown = end

    def _show_rows(self, at: I32) -> None:
        """Let each row see the rows of its cache, and the new rows of its own lane up to itself."""
        window, new = self._mask.window, len(self._slots)
        for i, mask in enumerate(self.arrays):
            slot, last, seen = self._slots[i], int(at[i]), mask[0, 0]
            low = max(0, last + 1 - window) if window else 0
            seen.fill(MASKED)
            if not self._mask.fresh:
                seen[low : last + 1] = 0
                continue
            own = [j for j in range(i + 1) if self._slots[j] == slot]
            seen[new + low : new + int(at[own[0]])] = 0
            seen[[j for j in own if at[j] >= low]] = 0

    def _show_chunk(self, at: I32, n: int) -> None:
        """Do the same for rows that are all of one lane."""
        rows, fresh, window = self._rows, self._mask.fresh, self._mask.window
        columns = np.arange(self._cache_rows)
        if fresh:  # new rows come first, and padding is behind every other
            columns = np.concatenate((np.append(at, np.full(rows - n, self._most_rows)), columns))
        last = np.full_like(at, at[-1]) if self._mask.prefix and at[0] == 0 else at
        seen = columns <= last[:, None]
        if fresh:
            seen[:, rows:] &= columns[rows:] < at[0]
        if window:
            seen &= columns > at[:, None] - window
        self._write(seen, n)

    def _show_new(self, n: int) -> None:
        """Let the rows of a lane without caches see each other."""
        if not self._chunk:
            return  # a row that is alone sees itself
        row, column = np.arange(n)[:, None], np.arange(self._rows)
        seen = np.broadcast_to(column < n, (n, self._rows)) if self._mask.both else column <= row
        if self._mask.window:
            seen = seen & (column > row - self._mask.window)
        self._write(seen, n)

    def _write(self, seen: npt.NDArray[np.bool_], n: int) -> None:
        mask = self.arrays[0][0]
        mask.fill(MASKED)
        mask[:n][seen] = 0
