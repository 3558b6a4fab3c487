"""A median and how sure it is: the percentile bootstrap of Efron, 1979 (numpy does the drawing)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from msgspec import Struct

LEVEL = 0.95
"""The share of intervals that hold the true median, as far as the repetitions stand for all that there could be."""
DRAWS = 2000
"""Samples of the repetitions, with replacement. The generator is seeded: the same repetitions, the same interval."""


class Estimate(Struct, frozen=True, forbid_unknown_fields=True):
    """What ``count`` repetitions say: their median with the interval ``low`` … ``high``, mean and standard deviation.

    One repetition has an interval of no width: nothing is known of its spread.
    """

    median: float
    low: float
    high: float
    mean: float
    sd: float
    count: int

    @property
    def width(self) -> float:
        """The width of the interval over the median; infinite for a median of 0 with any width."""
        wide = self.high - self.low
        if not wide:
            return 0.0
        return wide / abs(self.median) if self.median else float("inf")


def estimate(values: Sequence[float]) -> Estimate:
    """Return what ``values``, one or more, say together."""
    import numpy as np

    found = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).choice(found, (DRAWS, len(found)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Estimate(statistics.median(values), low, high, statistics.fmean(values), spread, len(values))
