"""Bytes of codes against one number at a time."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edgeloop.runtime.model.codec import (
    Grouped,
    Palette,
    around_zero,
    code_shape,
    from_bfloat16,
    pack,
    scaled,
    unpack,
)


def drawn(shape: tuple[int, ...], bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)


def test_two_codes_share_a_byte_the_first_in_the_low_half():
    codes = drawn((3, 2, 8), 4)
    stored = pack(codes, 4)
    assert stored.shape == (3, 2, 4)
    for place in np.ndindex(stored.shape):
        *row, i = place
        first, second = (int(codes[(*row, 2 * i + n)]) for n in (0, 1))
        assert int(stored[place]) == first + 16 * second


@pytest.mark.parametrize("bits", [4, 8])
def test_every_byte_comes_back(bits):
    stored = np.arange(256, dtype=np.uint8).reshape(2, 4, 32)
    before = stored.copy()
    np.testing.assert_array_equal(pack(unpack(stored, bits), bits), stored)
    found = around_zero(stored, bits)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, unpack(stored, bits).astype(int) - 2 ** (bits - 1))
    assert (found.min(), found.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    np.testing.assert_array_equal(stored, before)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "group"), [(12, 4), (10, 4), (6, 0), (2, 32)])
def test_values_of_a_matrix_and_of_its_rows(columns, group, bits):
    shape = code_shape(5, columns, group, bits)
    wide = group or columns
    assert shape == (5, (columns + wide - 1) // wide, wide * bits // 8)
    scales = np.random.default_rng(1).random(shape[:2]).astype(np.float16)
    matrix = Grouped(drawn(shape, 8), scales, bits, columns)
    codes = unpack(matrix.codes, bits)
    wanted = np.zeros((5, columns), np.float32)
    for row, column in np.ndindex(wanted.shape):
        place = row, column // wide
        code = int(codes[(*place, column % wide)]) - 2 ** (bits - 1)
        wanted[row, column] = np.float32(code) * np.float32(scales[place])
    found = matrix.values()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(matrix.values(np.array([4, 0, 4])), wanted[[4, 0, 4]])
    np.testing.assert_array_equal(matrix.values(slice(1, 3)), wanted[1:3])
    np.testing.assert_array_equal(scaled(around_zero(matrix.codes, bits), scales)[:, :columns], wanted)


def test_bits_of_bfloat16():
    numbers = [0.0, -0.0, 1.0, -2.5, 1.0078125, 65280.0, 2.0**-126, float("inf")]
    stored = np.array([struct.unpack("<I", struct.pack("<f", x))[0] >> 16 for x in numbers], np.uint16)
    np.testing.assert_array_equal(from_bfloat16(stored), np.array(numbers, np.float32))


def test_tables_of_several_rows_each():
    palette = Palette(
        np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.uint8), np.array([[1, 2], [3, 4]], np.float16)
    )
    wanted = [[1, 2], [2, 2], [3, 3], [4, 3]]
    np.testing.assert_array_equal(palette.values(), wanted)
    np.testing.assert_array_equal(palette.values(np.array([3, 0])), [wanted[3], wanted[0]])
    lower = palette.part(2, 4)
    assert lower.tables.shape == (1, 2)
    np.testing.assert_array_equal(lower.values(), wanted[2:])
