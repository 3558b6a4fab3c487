"""What a package may differ by from the reference engine, in float32 and rounded to float16.

Some models make more of float16's roundings than others: one that norms q and k divides K by its size, and where that
is small against what K was added up from, float16 is less sure of it. What is beyond the plain bound is therefore held
to what such roundings do to the reference engine, which knows nothing of the package.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ....runtime.errors import ParityError
from ....runtime.model.program import Program
from ...bounds import difference

EXACT = 1e-5
"""Bound in float32: only the order of adding may differ."""
SHIPPED = 5e-3
"""Bound with every result rounded to float16, for models of ``LAYERS`` applied layers or fewer."""
LAYERS = 16
MOST = 5e-2
"""Beyond this float16 is no arithmetic for a model: int8 activations, rounded either way, do less to the demo."""
SAME = 1e-6
"""Bound between decode_all and the chain of decode_d*, which are the same operators."""


def shipped(program: Program) -> float:
    """Return the bound in float16: roundings of layers add up as random numbers do, by the root of how many there
    are."""
    return SHIPPED * math.sqrt(max(1.0, program.applied_layers / LAYERS))


class Errors:
    """The largest difference of each thing that was compared; ParityError beyond the bound."""

    def __init__(
        self, bound: float, mode: str, derive: Callable[[], dict[str, float]] = dict[str, float]
    ) -> None:
        """``derive``: bounds of single things, by name, which is asked where ``bound`` is too narrow for one."""
        self.bound, self._mode, self._derive = bound, mode, derive
        self.found: dict[str, float] = defaultdict(float)
        self.widest = bound
        """The widest bound that something was held to."""

    @cached_property
    def _derived(self) -> dict[str, float]:
        return self._derive()

    def compare(self, what: str, found: Any, wanted: Any, bound: float | None = None) -> None:
        """Record the difference between ``found`` and ``wanted``; ParityError beyond ``bound``."""
        error = difference(np.asarray(found), np.asarray(wanted))
        if bound is None:
            bound = self.bound
            if not error <= bound:
                bound = max(bound, min(self._derived.get(what, 0.0), MOST))
        if not error <= bound:
            raise ParityError(
                f"coreml disagrees with the reference engine in {what}, computed in {self._mode}: {error:.2g} "
                f"relative, at most {bound:.0e} wanted; the bundle was not written, please report the checkpoint"
            )
        self.found[what] = max(self.found[what], error)
        self.widest = max(self.widest, bound)
