"""Rotary embeddings (RoPE, arXiv 2104.09864): the angle by which a position rotates each pair of dims.

A bundle stores none of it: tables are made for the positions that a cache has room for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rotation import Interpolated, Llama3, Rotation, Yarn

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

STEP = 256
"""Tables grow by a multiple of this many positions, so that most caches of a session find theirs made."""
_PIECE = 4096  # positions at a time: float64 angles of a long context would be larger than its tables


def cos_sin(by: Rotation, positions: I64) -> tuple[F32, F32]:
    """Return cos and sin [n, dims/2] of the angles at ``positions`` [n], times the amplitude, computed in float64."""
    angle = positions[:, None] * frequencies(by)
    amplitude = by.scaling.amplitude if isinstance(by.scaling, Yarn) else 1.0
    return (np.cos(angle) * amplitude).astype(np.float32), (np.sin(angle) * amplitude).astype(np.float32)


class RotaryTables:
    """cos and sin [P, dims/2] float32 of positions 0 … P − 1, made when a cache wants them and kept."""

    def __init__(self, by: Rotation, kept_as: npt.DTypeLike = np.float32) -> None:
        """``kept_as``: the type of an engine's own tables; values are rounded to it."""
        self._by = by
        self._kept_as = np.dtype(kept_as)
        self._tables = self._made(0)

    def rows(self, capacity: int) -> tuple[F32, F32]:
        """Return cos and sin of at least the first ``capacity`` positions; the same arrays until more are wanted."""
        if capacity > len(self._tables[0]):
            self._tables = self._made(-(-capacity // STEP) * STEP)
        return self._tables

    def _made(self, count: int) -> tuple[F32, F32]:
        cos, sin = (np.empty((count, self._by.dims // 2), np.float32) for _ in range(2))
        for start in range(0, count, _PIECE):
            piece = slice(start, min(start + _PIECE, count))
            found = cos_sin(self._by, np.arange(piece.start, piece.stop))
            for table, values in zip((cos, sin), found, strict=True):
                table[piece] = values.astype(self._kept_as)
        return cos, sin


def frequencies(by: Rotation) -> F64:
    """Return the angle [dims/2], in radians, by which each pair of dims is rotated from one position to the next."""
    plain: F64 = by.theta ** (-np.arange(0, by.dims, 2) / by.dims)
    scaling = by.scaling
    if scaling is None:
        return plain
    slowed: F64 = plain / scaling.factor
    if isinstance(scaling, Interpolated):
        return slowed
    kept = _llama3(scaling, plain) if isinstance(scaling, Llama3) else _yarn(scaling, by)
    blended: F64 = kept * plain + (1 - kept) * slowed
    return blended


def _llama3(scaling: Llama3, plain: F64) -> F64:
    """Return the factor for each frequency, by how often its wave fits into the context of the training."""
    waves = scaling.original_context * plain / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept: F64 = np.clip((waves - low) / (high - low), 0, 1)
    return kept


def _yarn(scaling: Yarn, by: Rotation) -> F64:
    """Return the factor for each frequency, a ramp from the pair of beta_fast rotations to that of beta_slow."""

    def pair(turned: float) -> float:
        waves = scaling.original_context / (turned * 2 * np.pi)
        return float(by.dims * np.log(waves) / (2 * np.log(by.theta)))

    first, last = (
        max(np.floor(pair(scaling.beta_fast)), 0),
        min(np.ceil(pair(scaling.beta_slow)), by.dims - 1),
    )
    span = max(last - first, 1e-3)
    kept: F64 = 1 - np.clip((np.arange(by.dims // 2) - first) / span, 0, 1)
    return kept
