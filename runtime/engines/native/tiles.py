"""How the numbers of a matrix lie in a file: tiles of 16 rows, as src/format.h says. Forth and back, without rounding.

Rows are those of one part of one copy; the last tile is filled up with rows of zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.codec import U8, pack, unpack
from .format import COLUMNS, TILE, Storage, filled_up

Array = npt.NDArray[Any]
BITS = {Storage.F32: 32, Storage.F16: 16, Storage.I8: 8, Storage.I4: 4}
TYPES: dict[Storage, np.dtype[Any]] = {Storage.F32: np.dtype("<f4"), Storage.F16: np.dtype("<f2")}


def code_bytes(storage: Storage, rows: int, columns: int) -> int:
    """Bytes of the tiles of ``rows`` rows of codes."""
    return filled_up(rows, TILE) * filled_up(columns, COLUMNS) * BITS[storage] // 8


def float_bytes(storage: Storage, rows: int, columns: int) -> int:
    """Bytes of the tiles of ``rows`` rows of floats."""
    return filled_up(rows, TILE) * columns * BITS[storage] // 8


def float_tiles(rows: Array) -> Array:
    """rows [n, K] of floats → [n/16, K, 16]."""
    filled = np.pad(rows, ((0, -len(rows) % TILE), (0, 0)))
    return np.ascontiguousarray(filled.reshape(-1, TILE, rows.shape[1]).transpose(0, 2, 1))


def code_tiles(codes: U8, bits: int, columns: int) -> U8:
    """codes [n, groups, G·bits/8] as they are stored → [n/16, K'·bits/32, 16, 4] bytes.

    K': ``columns``, filled up with codes of zero.
    """
    step, zero = 32 // bits, 1 << bits - 1
    unsigned = unpack(codes.reshape(len(codes), -1), bits)[:, :columns]
    room = ((0, -len(codes) % TILE), (0, -columns % COLUMNS))
    filled = np.pad(unsigned, room, constant_values=zero)
    steps = filled.reshape(-1, TILE, filled.shape[1] // step, step)
    if bits == 4:
        steps = steps[..., :4] | steps[..., 4:] << np.uint8(4)
    return np.ascontiguousarray(steps.transpose(0, 2, 1, 3))


def float_rows(tiles: Array, rows: int) -> Array:
    """``float_tiles`` backwards: [n/16, K, 16] → its first ``rows`` rows [rows, K]."""
    found = tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])
    return np.ascontiguousarray(found[:rows])


def code_rows(tiles: U8, bits: int, rows: int, columns: int, group: int) -> U8:
    """``code_tiles`` backwards: → [rows, ⌈K/G⌉, G·bits/8], what fills up the last group being codes of zero."""
    steps = tiles.transpose(0, 2, 1, 3)
    if bits == 4:
        steps = np.concatenate((steps & np.uint8(15), steps >> np.uint8(4)), axis=-1)
    unsigned = steps.reshape(len(tiles) * TILE, -1)[:rows, :columns]
    filled = np.pad(unsigned, ((0, 0), (0, -columns % group)), constant_values=1 << bits - 1)
    return pack(filled.reshape(rows, -1, group), bits)
