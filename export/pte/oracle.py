"""What int8 activations may do to a program, as XNNPACK makes them (``runtime/model/activations.py``).

No two processors agree, whatever the arithmetic says: their kernels add in other orders and take 1/√x from other
instructions, and a value near the middle of a step that rounds the other way is off by the whole step. In a model with
several layers one such value moves everything behind it nearly as far as all of them would: on the demo a last bit
changed here and there gives 0.009, and *every* activation rounded up or down by chance 0.03.

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
from ...runtime.model.activations import ACTIVATIONS
from ..fused import Numerics
from ..parity import EXACT, difference

RUNS, MARGIN = 2, 3
KERNELS = (
    "with float activations the same program agrees, so it is this processor's int8 kernels that compute something "
    "else; export on another machine, or with --quant none"
)
"""What to do where only int8 activations differ."""


class RowsAsInt8:
    """Activations as XNNPACK sees them; while ``shaken`` each may round either way."""

    def __init__(self) -> None:
        self._made = ACTIVATIONS["XNNPACK"]

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] → the values that its int8 codes stand for."""
        return torch.from_numpy(self._made(x.detach().numpy(), 0))

    @contextmanager
    def shaken(self, seed: int) -> Iterator[None]:
        """A value between two steps is rounded to the one or the other, the nearer the likelier."""
        plain = self._made
        self._made = plain.shaken(seed)
        try:
            yield
        finally:
            self._made = plain


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
