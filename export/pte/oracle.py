"""What XNNPACK computes of activations, in torch: int8 with a scale and a zero point for each row.

The arithmetic is xnn_f32_qd8_asymmetric_quantization_params of XNNPACK (src/params.c): the same order of operations,
because a value that rounds the other way is off by a whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...runtime.backend import F32
from ..fused import Numerics
from ..parity import EXACT, difference

MARGIN = 4
LOW, HIGH = -128.0, 127.0
ULP = 2.0**-23


class RowsAsInt8:
    """Activations as XNNPACK sees them; ``shaken`` shows what that makes of the last bit of a float.

    A value near the middle of a step may round either way, and the ways are a whole step apart. Every layer has some,
    so in a deep model no two orders of adding the same numbers agree closely.
    """

    def __init__(self) -> None:
        self._random: torch.Generator | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] → the values that its int8 codes stand for."""
        if self._random is not None:
            x = x * (1 + ULP * (2 * torch.rand(x.shape, generator=self._random) - 1))
        return rows_as_int8(x)

    @contextmanager
    def shaken(self) -> Iterator[None]:
        """Inputs change by up to one unit in the last place."""
        self._random = torch.Generator().manual_seed(0)
        try:
            yield
        finally:
            self._random = None


def parity_bound(numerics: Numerics, run: Callable[[], list[F32]], wanted: list[F32]) -> float:
    """How much a program may differ from the oracle, of which ``run`` gives results like ``wanted``.

    ``EXACT``; or ``MARGIN`` times what the last bit of a float makes of them through int8 activations.
    """
    if not isinstance(numerics.activations, RowsAsInt8):
        return EXACT
    with numerics.activations.shaken():
        return max(EXACT, MARGIN * max(map(difference, run(), wanted)))


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
