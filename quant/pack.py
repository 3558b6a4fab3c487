"""Group-wise symmetric integer codes: the only code that turns a weight into a number of few bits.

A row [K] of a matrix is cut into groups of G, the last padded with zeros, or it is one group. Each has one scale and
codes around zero; their bytes are those of ``runtime/model/codec.py``. Scales are rounded to bfloat16 and kept in
float16's normal range **before** the codes are chosen, so the same numbers are exact on engines that hold scales as
bfloat16, float16 or float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..runtime.model.codec import Grouped, code_shape, group_of, pack

SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
LARGEST_SCALE = 65280.0  # the largest bfloat16 that float16 holds
_SLICE = 1 << 22  # elements worked on at a time, to bound temporaries

Scales = Callable[[Tensor, int], Tensor]
"""(x [N, groups, G], bits) → scales [N, groups], which are numbers that can be stored."""


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code around zero; of 8 bits, −128 is not used."""
    largest = 2 ** (bits - 1) - 1
    return (-largest - 1 if bits == 4 else -largest), largest


def storable(scales: Tensor) -> Tensor:
    """Return float32 ``scales`` rounded to numbers that can be stored."""
    return scales.bfloat16().float().clamp(SMALLEST_SCALE, LARGEST_SCALE)


def full_range(x: Tensor, bits: int) -> Tensor:
    """Return the scales [N, groups] of x [N, groups, G] that make each group's largest value the highest code."""
    return storable(x.abs().amax(-1) / code_range(bits)[1])


def nearest(x: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the codes around zero that are nearest to x, as float32; ``scales`` have its shape, or broadcast to it."""
    return (x / scales).round_().clamp_(*code_range(bits))


def groups_of(weight: Tensor, group_size: int) -> Tensor:
    """Return weight [N, K] as [N, ⌈K/G⌉, G], the last group padded with zeros. ``group_size`` 0: a row is a group."""
    columns = weight.shape[1]
    padding = -columns % group_of(columns, group_size)
    padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
    cut: Tensor = padded.unflatten(1, (-1, group_of(columns, group_size)))
    return cut


def quantize(weight: Tensor, bits: int, group_size: int, scales: Scales = full_range) -> Grouped:
    """Return the round-to-nearest codes of ``weight`` [N, K] float32, with the ``scales`` of its groups."""
    columns = weight.shape[1]
    shape = code_shape(len(weight), columns, group_size, bits)
    codes, kept = np.empty(shape, np.uint8), np.empty(shape[:2], np.float16)
    first = 0
    for part in weight.split(max(1, _SLICE // columns)):
        x = groups_of(part, group_size)
        found = scales(x, bits)
        rows = slice(first, first := first + len(part))
        codes[rows], kept[rows] = _stored(nearest(x, found[..., None], bits), found, bits)
    return Grouped(codes, kept, bits, columns)


def packed(codes: Tensor, scales: Tensor, bits: int, group_size: int) -> Grouped:
    """Return codes around zero [N, K], float32, with scales [N, groups] that can be stored, as they are stored."""
    stored, kept = _stored(groups_of(codes, group_size), scales, bits)
    return Grouped(stored, kept, bits, codes.shape[1])


def _stored(codes: Tensor, scales: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    unsigned = (codes + 2 ** (bits - 1)).to(torch.uint8)
    return pack(unsigned.numpy(), bits), scales.half().numpy()
