"""Group-wise symmetric integer codes: the one place where a weight becomes a number of few bits.

A row [K] of a matrix is cut into groups of G; each has one scale and codes around zero, stored with an
offset as unsigned bytes: int8 value = (code − 128)·scale, int4 value = (nibble − 8)·scale, two nibbles a
byte, low first. Scales are rounded to bfloat16 and kept in float16's normal range **before** the codes are
chosen, so the same numbers are exact on engines that hold scales as bfloat16, float16 or float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.errors import ExportError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]

SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
LARGEST_SCALE = 65280.0  # the largest bfloat16 that float16 holds
_ROWS_BYTES = 1 << 24  # work on slices of about this many bytes, to bound temporaries


@dataclass(frozen=True)
class Packed:
    """codes [N, K/G, G·bits/8] uint8 and scales [N, K/G] float16 of a matrix [N, K]."""

    codes: U8
    scales: F16
    bits: int


def round_to_bfloat16(x: F32) -> F32:
    """Nearest bfloat16, ties to even, as float32."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def quantize(weight: F32, bits: int, group_size: int, name: str = "a matrix") -> Packed:
    """Round-to-nearest codes of ``weight`` [N, K]; ExportError when K is not a multiple of the group size."""
    rows, columns = weight.shape
    if columns % group_size:
        fitting = [g for g in (128, 64, 32) if columns % g == 0]
        advice = f"use --group-size {fitting[0]}" if fitting else "use --quant none"
        raise ExportError(f"{name} has {columns} inputs, not a multiple of group size {group_size}: {advice}")
    groups = columns // group_size
    codes = np.empty((rows, groups, group_size * bits // 8), np.uint8)
    scales = np.empty((rows, groups), np.float16)
    step = max(1, _ROWS_BYTES // (4 * columns))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        codes[part], scales[part] = _quantize_rows(weight[part].reshape(-1, groups, group_size), bits)
    return Packed(codes, scales, bits)


def _quantize_rows(x: F32, bits: int) -> tuple[U8, F16]:
    largest = 2 ** (bits - 1) - 1
    scales = round_to_bfloat16(np.abs(x).max(-1) / np.float32(largest))
    scales = np.clip(scales, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32)
    low = -largest - 1 if bits == 4 else -largest
    codes = np.clip(np.rint(x / scales[..., None]), low, largest) + (largest + 1)
    unsigned = codes.astype(np.uint8)
    if bits == 4:
        unsigned = unsigned[..., ::2] | (unsigned[..., 1::2] << 4)
    return unsigned, scales.astype(np.float16)


def dequantize(packed: Packed) -> F32:
    """The matrix [N, K] that the codes stand for."""
    codes = packed.codes
    if packed.bits == 4:
        codes = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:-1], -1)
    values = codes.astype(np.float32) - np.float32(2 ** (packed.bits - 1))
    values *= packed.scales.astype(np.float32)[..., None]
    return values.reshape(len(codes), -1)
