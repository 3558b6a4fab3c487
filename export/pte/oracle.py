"""What XNNPACK computes of activations, in torch: int8 with a scale and a zero point for each row.

The arithmetic is xnn_f32_qd8_asymmetric_quantization_params of XNNPACK (src/params.c), in its order of operations.
Even so no two processors agree: their kernels add in other orders and take 1/√x from other instructions, and a value
near the middle of a step that rounds the other way is off by the whole step. In a model with several layers one such
value moves everything behind it nearly as far as all of them would: on the demo a last bit changed here and there
gives 0.009, and *every* activation rounded up or down by chance 0.03.

So that is the bound: what comes of it when every activation, and every zero point, may round either way. No processor
can do more to a correct program, and it says nothing of the one that the export runs on. It is measured for each
thing that is compared, in ``RUNS`` runs, and ``MARGIN`` times the largest is allowed, because a largest difference is
itself a matter of chance: two such runs differ by up to 2. That the program is right in all else is not
left to this bound: see exact.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...runtime.backend import F32
from ..fused import Numerics
from ..parity import EXACT, difference

RUNS, MARGIN = 2, 3
LOW, HIGH = -128.0, 127.0
KERNELS = (
    "with float activations the same program agrees, so it is this processor's int8 kernels that compute something "
    "else; export on another machine, or with --quant none"
)
"""What to do where only int8 activations differ."""


class RowsAsInt8:
    """Activations as XNNPACK sees them; while ``shaken`` each may round either way."""

    def __init__(self) -> None:
        self._random: torch.Generator | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] → the values that its int8 codes stand for."""
        return rows_as_int8(x, self._random)

    @contextmanager
    def shaken(self, seed: int) -> Iterator[None]:
        """A value between two steps is rounded to the one or the other, the nearer the likelier."""
        self._random = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            self._random = None


def parity_bounds(numerics: Numerics, run: Callable[[], list[F32]], wanted: list[F32]) -> list[float]:
    """How much a program may differ from the oracle in each of ``wanted``, of which ``run`` makes others.

    ``EXACT``; or ``MARGIN`` times what rounding either way makes of int8 activations.
    """
    bounds = [EXACT] * len(wanted)
    if isinstance(numerics.activations, RowsAsInt8):
        for seed in range(RUNS):
            with numerics.activations.shaken(seed):
                bounds = [
                    max(b, MARGIN * difference(*pair)) for b, *pair in zip(bounds, run(), wanted, strict=True)
                ]
    return bounds


def rows_as_int8(x: Tensor, random: torch.Generator | None = None) -> Tensor:
    """x [..., K] → the values that its int8 codes stand for, rounded either way with ``random``."""

    def whole(values: Tensor) -> Tensor:
        if random is not None:
            values = values + torch.rand(values.shape, generator=random) - 0.5
        return values.round()

    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(low == high, torch.ones_like(low), (high - low) / (HIGH - LOW))
    from_low, from_high = LOW + low / scale, HIGH + high / scale
    zero = torch.where(from_low + from_high > 0, LOW - low / scale, HIGH - high / scale)
    zero = whole(zero.clamp(LOW, HIGH))
    codes = (whole(x * (1 / scale)) + zero).clamp(LOW, HIGH)
    quantized: Tensor = (codes - zero) * scale
    return quantized
