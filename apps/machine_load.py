"""How much of the computer other programs use, while a benchmark's turn runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .machine import usable_threads

_IDLE = (3, 4)
"""Columns of /proc/stat's first line: idle, and waiting for a disk."""
_GUESTS = 8
"""Columns up to here are times of their own; guests' are in a user's too."""


class ForeignLoad:
    """Processor time that was neither this process's nor its ended children's since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    @property
    def seconds(self) -> float:
        """Wall time since then."""
        return time.monotonic() - self._start[0]

    def share(self) -> float | None:
        """The share of all cores that others took, stolen time included; None where the system does not say."""
        (wall, busy, own), (wall0, busy0, own0) = self._now(), self._start
        if busy is None or busy0 is None:
            return None
        return max(0.0, (busy - busy0 - (own - own0)) / ((wall - wall0) * usable_threads()))

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        return time.monotonic(), busy_seconds(), sum(os.times()[:4])


def busy_seconds() -> float | None:
    """Seconds that the processors have worked since the start of the system, all together; Linux only."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [int(word) for number, word in enumerate(words[:_GUESTS]) if number not in _IDLE]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")
