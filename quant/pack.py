"""Group-wise symmetric integer codes: the one place where a weight becomes a number of few bits.

A row [K] of a matrix is cut into groups of G, the last padded with zeros, or it is one group. Each has one scale and
codes around zero, stored with an offset as unsigned bytes: int8 value = (code − 128)·scale, int4 value =
(nibble − 8)·scale, two nibbles a byte, low first. Scales are rounded to bfloat16 and kept in float16's normal range
**before** the codes are chosen, so the same numbers are exact on engines that hold scales as bfloat16, float16 or
float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]

SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
LARGEST_SCALE = 65280.0  # the largest bfloat16 that float16 holds
_SLICE = 1 << 22  # elements worked on at a time, to bound temporaries


@dataclass(frozen=True)
class Packed:
    """codes [N, ⌈K/G⌉, G·bits/8] uint8 and scales [N, ⌈K/G⌉] float16 of a matrix [N, K]."""

    codes: U8
    scales: F16
    bits: int


def quantize(weight: Tensor, bits: int, group_size: int) -> Packed:
    """Round-to-nearest codes of ``weight`` [N, K] float32; the last group is padded with zeros to G.

    ``group_size`` 0: a row is a group.
    """
    columns = weight.shape[1]
    group_size = group_size or columns
    groups = -(-columns // group_size)
    padding = groups * group_size - columns
    parts = []
    for part in weight.split(max(1, _SLICE // columns)):
        padded = torch.nn.functional.pad(part, (0, padding)) if padding else part
        parts.append(_quantize_rows(padded.unflatten(1, (groups, group_size)), bits))
    return Packed(torch.cat([c for c, _ in parts]).numpy(), torch.cat([s for _, s in parts]).numpy(), bits)


def _quantize_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [N, groups, G] → codes [N, groups, G·bits/8] uint8, scales [N, groups] float16."""
    largest = 2 ** (bits - 1) - 1
    low = -largest - 1 if bits == 4 else -largest
    scales = (x.abs().amax(-1) / largest).bfloat16().float().clamp(SMALLEST_SCALE, LARGEST_SCALE)
    codes = (x / scales[..., None]).round_().clamp_(low, largest).add_(largest + 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return codes, scales.half()


def dequantize(packed: Packed, columns: int) -> F32:
    """The matrix [N, K = ``columns``] that the codes stand for."""
    codes = packed.codes
    if packed.bits == 4:
        codes = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:-1], -1)
    values = codes.astype(np.float32) - np.float32(2 ** (packed.bits - 1))
    values *= packed.scales.astype(np.float32)[..., None]
    return values.reshape(len(codes), -1)[:, :columns]
