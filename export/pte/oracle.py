"""What XNNPACK computes of activations, in torch: int8 with a scale and a zero point for each row.

The arithmetic is xnn_f32_qd8_asymmetric_quantization_params of XNNPACK (src/params.c): the same order of operations,
because a value that rounds the other way is off by a whole step.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH = -128.0, 127.0


def rows_as_int8(x: Tensor) -> Tensor:
    """x [..., K] → the values that its int8 codes stand for."""
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / (HIGH - LOW))
    from_low, from_high = LOW + low / scale, HIGH + high / scale
    zero = torch.where(from_low + from_high > 0, LOW - low / scale, HIGH - high / scale)
    zero = zero.clamp(LOW, HIGH).round()
    codes = (torch.round(x * (1 / scale)) + zero).clamp(LOW, HIGH)
    quantized: Tensor = (codes - zero) * scale
    return quantized
