"""Group-wise symmetric integer codes: the only code that turns a weight into a number of few bits.

A row [K] of a matrix is cut into groups of G, the last padded with zeros, or it is one group. Each has one scale and
codes around zero; their bytes are those of ``runtime/model/codec.py``. Scales are rounded to bfloat16 and kept in
float16's normal range **before** the codes are chosen, so the same numbers are exact on engines that hold scales as
bfloat16, float16 or float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..runtime.model.codec import Grouped, code_shape, group_of, pack

SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
LARGEST_SCALE = 65280.0  # the largest bfloat16 that float16 holds
_SLICE = 1 << 22  # elements worked on at a time, to bound temporaries


def quantize(weight: Tensor, bits: int, group_size: int) -> Grouped:
    """Return the round-to-nearest codes of ``weight`` [N, K] float32; the last group is padded with zeros to G.

    ``group_size`` 0: a row is a group.
    """
    columns = weight.shape[1]
    group = group_of(columns, group_size)
    shape = code_shape(len(weight), columns, group_size, bits)
    codes, scales = np.empty(shape, np.uint8), np.empty(shape[:2], np.float16)
    padding = shape[1] * group - columns
    first = 0
    for part in weight.split(max(1, _SLICE // columns)):
        padded = torch.nn.functional.pad(part, (0, padding)) if padding else part
        part_codes, part_scales = _quantize_rows(padded.unflatten(1, (-1, group)), bits)
        rows = slice(first, first := first + len(part))
        codes[rows], scales[rows] = pack(part_codes.numpy(), bits), part_scales.numpy()
    return Grouped(codes, scales, bits, columns)


def _quantize_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return unsigned codes [N, groups, G] uint8 and scales [N, groups] float16 of x [N, groups, G]."""
    largest = 2 ** (bits - 1) - 1
    low = -largest - 1 if bits == 4 else -largest
    scales = (x.abs().amax(-1) / largest).bfloat16().float().clamp(SMALLEST_SCALE, LARGEST_SCALE)
    codes = (x / scales[..., None]).round_().clamp_(low, largest).add_(largest + 1).to(torch.uint8)
    return codes, scales.half()
