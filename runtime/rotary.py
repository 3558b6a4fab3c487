"""Rotary embeddings: cos and sin of the positions that a cache has room for. A bundle stores none of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .spec import Spec

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

STEP = 256
"""Tables grow by a multiple of this many positions, so that most caches of a session find theirs made."""
_PIECE = 4096  # positions at a time: float64 angles of a long context would be larger than its tables


def rotary(positions: I64, head_dim: int, theta: float) -> tuple[F32, F32]:
    """cos, sin [n, head_dim/2] of positions·theta^(−2i/head_dim); float64 until the end."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = positions[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class RotaryTables:
    """cos and sin [P, head_dim/2] float32 of positions 0 … P − 1, made when a cache wants them and kept."""

    def __init__(self, spec: Spec, kept_as: npt.DTypeLike = np.float32) -> None:
        """``kept_as``: the type of an engine's own tables; values are rounded to it."""
        self._head_dim, self._theta = spec.head_dim, spec.rope_theta
        self._kept_as = np.dtype(kept_as)
        self._tables = self._made(0)

    def rows(self, capacity: int) -> tuple[F32, F32]:
        """cos and sin of at least the first ``capacity`` positions; the same arrays until more are wanted."""
        if capacity > len(self._tables[0]):
            self._tables = self._made(-(-capacity // STEP) * STEP)
        return self._tables

    def _made(self, count: int) -> tuple[F32, F32]:
        cos, sin = (np.empty((count, self._head_dim // 2), np.float32) for _ in range(2))
        for start in range(0, count, _PIECE):
            piece = slice(start, min(start + _PIECE, count))
            found = rotary(np.arange(piece.start, piece.stop), self._head_dim, self._theta)
            for table, values in zip((cos, sin), found, strict=True):
                table[piece] = values.astype(self._kept_as)
        return cos, sin
