"""Milliseconds of one call after another."""

from __future__ import annotations

from collections.abc import Callable

from ...runtime.timing import Stopwatch


def times_of(step: Callable[[], object], count: int) -> list[float]:
    """Call ``step`` so often; return the milliseconds of each call. What it does between two calls is in the next."""
    times, watch = [], Stopwatch()
    for _ in range(count):
        step()
        times.append(watch.lap_ms())
    return times


def ms_of(call: Callable[[], object]) -> float:
    """Call it once; return the milliseconds."""
    watch = Stopwatch()
    call()
    return watch.ms
