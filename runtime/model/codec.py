"""How codes of few bits are packed into bytes, and the values that they stand for.

A *code* is a whole number around zero of 4 or 8 bits. It is stored with an offset of half its range, unsigned: 8 or 128
is zero. Two codes of 4 bits share a byte, the first in the low half. That is the layout of a bundle's weights and of
MatMulNBits; XNNPACK and Core ML hold the same codes without the offset.

A matrix [N, K] is cut along K into groups of G columns, the last one filled up with codes of zero; each group has a
scale, and a value is code·scale. Or its values are entries of tables (a palette) that a few rows share.

Which codes and scales a weight gets is decided in ``quant/``; nothing here rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
RowSelection = slice | npt.NDArray[np.integer[Any]]
"""Rows of a matrix: a slice, or their numbers."""

ALL = slice(None)
GroupSizes = int | Mapping[str, int]
"""The group size of every matrix's codes, or that of each by its name; 0: a row is one group."""


def pack(codes: U8, bits: int) -> U8:
    """Return unsigned codes [..., G], each below 2^bits, packed into bytes [..., G·bits/8]."""
    return codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def unpack(stored: U8, bits: int) -> U8:
    """Return bytes [..., B] as unsigned codes [..., 8·B/bits]; the inverse of ``pack``."""
    if bits == 8:
        return stored
    codes = np.empty((*stored.shape[:-1], 2 * stored.shape[-1]), np.uint8)
    np.bitwise_and(stored, 15, out=codes[..., 0::2])
    np.right_shift(stored, 4, out=codes[..., 1::2])
    return codes


def around_zero(stored: U8, bits: int) -> I8:
    """Return bytes [..., B] as signed codes [..., 8·B/bits], without their offset."""
    if bits == 8:
        return (stored ^ np.uint8(128)).view(np.int8)  # for a byte, turning the sign bit is taking 128 away
    codes = unpack(stored, bits).view(np.int8)
    codes -= 8
    return codes


def scaled(codes: I8, scales: npt.NDArray[np.floating[Any]]) -> F32:
    """Return the float32 values of signed codes, [..., K] or [..., groups, G], with scales [..., groups]."""
    values = codes.reshape(*scales.shape, -1).astype(np.float32)
    values *= scales.astype(np.float32, copy=False)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


def from_bfloat16(stored: npt.NDArray[np.uint16]) -> F32:
    """Return the float32 values of bfloat16 bit patterns, which are the upper half of a float32's."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def group_size_of(sizes: GroupSizes, matrix: str) -> int:
    """Return the group size of the codes of ``matrix``."""
    return sizes if isinstance(sizes, int) else sizes[matrix]


def group_of(columns: int, group_size: int) -> int:
    """Return G for rows of ``columns``; a group size of 0 means that a row is one group."""
    return group_size or columns


def code_shape(rows: int, columns: int, group_size: int, bits: int) -> tuple[int, int, int]:
    """Return [N, ⌈K/G⌉, G·bits/8], the shape of a matrix's stored codes; its scales are [N, ⌈K/G⌉]."""
    group = group_of(columns, group_size)
    return rows, -(-columns // group), group * bits // 8


ENTRIES, TABLE_ROWS = 16, 16
"""Values of a table, and the rows that share one, or the next larger number that divides a matrix: tables are then
0.4% of the bytes."""


def rows_of_table(parts: Iterable[int]) -> int:
    """Return how many rows share a table, so that it belongs to one part of a matrix of ``parts`` rows each."""
    common = gcd(*parts)
    return next((n for n in range(TABLE_ROWS, common) if common % n == 0), common)


@dataclass(frozen=True)
class Grouped:
    """A matrix [N, K] in groups: stored codes [N, ⌈K/G⌉, G·bits/8] and scales [N, ⌈K/G⌉]."""

    codes: U8
    scales: F16
    bits: int
    columns: int

    def values(self, rows: RowSelection = ALL) -> F32:
        """Return the float32 values [n, K] of ``rows``."""
        found = scaled(around_zero(self.codes[rows], self.bits), self.scales[rows])
        return found[:, : self.columns]


@dataclass(frozen=True)
class Palette:
    """A matrix [N, K] by tables: indices [N, K] uint8 into tables [N/n, entries] float16, one for each n rows."""

    indices: U8
    tables: F16

    @property
    def rows_per_table(self) -> int:
        """n: how many rows share a table."""
        return len(self.indices) // len(self.tables)

    def part(self, first: int, last: int) -> Palette:
        """Return rows ``first`` to ``last`` − 1, which must be those of whole tables."""
        return Palette(
            self.indices[first:last], self.tables[first // self.rows_per_table : last // self.rows_per_table]
        )

    def values(self, rows: RowSelection = ALL) -> F32:
        """Return the float32 values [n, K] of ``rows``."""
        tables = self.tables[np.arange(len(self.indices))[rows] // self.rows_per_table].astype(np.float32)
        return np.take_along_axis(tables, self.indices[rows].astype(np.intp), axis=1)
