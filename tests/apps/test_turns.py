"""The harness: rounds until the spread is small, disturbed turns left out, intervals that hold what they say."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from edgeloop.apps.measure import turns as harness
from edgeloop.apps.measure.child import run_child
from edgeloop.apps.measure.interval import estimate
from edgeloop.apps.measure.tokens import times_of
from edgeloop.apps.measure.turns import ENOUGH, Effort, Turns, disturbed, take_turns
from edgeloop.runtime.errors import EngineError


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``loads(0.0, 0.3)``: what others take of the cores, turn by turn, over and over."""

    def said(*shares: float) -> None:
        cycle = itertools.cycle(shares)
        monkeypatch.setattr(harness._Watch, "share", lambda watch: next(cycle))

    return said


def test_the_interval_is_scipys() -> None:
    """The percentile bootstrap of the median, by somebody else."""
    scipy = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).lognormal(1.0, 0.3, 41).tolist()
    found = estimate(values)
    theirs = scipy.bootstrap(
        (values,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    spread = found.high - found.low
    assert found.low == pytest.approx(theirs.low, abs=0.1 * spread)
    assert found.high == pytest.approx(theirs.high, abs=0.1 * spread)
    assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found == estimate(values)


def test_intervals_hold_the_true_median_as_often_as_they_say() -> None:
    """95 of 100, roughly: the bootstrap of a median of 15 values is known to be a little off."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = estimate(draw.normal(10.0, 1.0, 15).tolist())
        held += found.low <= 10.0 <= found.high
    assert 0.88 < held / 300 < 0.99


def test_one_value_has_no_width() -> None:
    found = estimate([2.5])
    assert (found.median, found.low, found.high, found.sd, found.count, found.width) == (
        2.5,
        2.5,
        2.5,
        0,
        1,
        0,
    )
    assert estimate([-1.0, 0.0, 1.0]).width == math.inf


def test_contenders_take_turns(loads: Callable[..., None]) -> None:
    loads(0.0)
    calls = list[str]()

    def contender(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    found = take_turns({"a": contender("a"), "b": contender("b")}, float, Effort(2))
    assert calls == ["a", "b"] * 3
    assert found["a"].values == [3.0, 5.0]  # the warm-up is not counted
    assert found["b"].values == [4.0, 6.0]


def test_it_goes_on_until_the_spread_is_small(loads: Callable[..., None]) -> None:
    loads(0.0)
    draw = random.Random(0)
    steady = take_turns({"steady": lambda: 3.0}, float, Effort())
    assert len(steady["steady"].values) == ENOUGH
    noisy = take_turns(
        {"steady": lambda: 3.0, "noisy": lambda: draw.gauss(3.0, 0.3)},
        float,
        Effort(spread=0.05, seconds=600),
    )
    assert len(noisy["steady"].values) == len(noisy["noisy"].values) > 20
    assert noisy["noisy"].estimate(float).width <= 0.05


def test_it_stops_when_the_time_is_up(loads: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    loads(0.9)  # no turn is undisturbed, so there are never enough
    clock = itertools.count()
    monkeypatch.setattr(harness.time, "monotonic", lambda: float(next(clock)))
    found = take_turns({"one": lambda: 1.0}, float, Effort(seconds=20))
    assert 3 < len(found["one"].values) < 20
    assert found["one"].kept == found["one"].values


def test_disturbed_turns_are_counted_and_left_out(loads: Callable[..., None]) -> None:
    loads(0.0, 0.4, 0.01, 0.0)
    times = iter([9.0, 1.0, 50.0, 3.0, 2.0])
    found = take_turns({"one": lambda: next(times)}, float, Effort(4))["one"]
    assert (found.values, found.kept, found.disturbed) == ([1.0, 50.0, 3.0, 2.0], [1.0, 3.0, 2.0], 1)
    assert found.estimate(float).median == 2.0
    assert disturbed([found, found]) == (2, 8)


def test_ratios_are_of_rounds_that_nothing_disturbed() -> None:
    ours = Turns([1.0, 2.0, 100.0, 4.0], [0.0, 0.0, 0.5, 0.0])
    theirs = Turns([2.0, 600.0, 4.0, 8.0], [0.0, 0.5, 0.0, None])
    assert ours.over(theirs, float).median == 0.5
    assert ours.over(theirs, float).count == 2
    never = Turns([3.0, 6.0], [0.5, 0.5])
    assert never.over(Turns([1.0, 2.0], [0.5, 0.5]), float).median == 3.0


def test_times_of_counts_calls() -> None:
    calls = list[int]()
    times = times_of(lambda: calls.append(1), 4)
    assert len(times) == len(calls) == 4
    assert min(times) >= 0


def test_a_child_that_fails_is_reported_in_its_own_words() -> None:
    with pytest.raises(EngineError, match=r"it does not run: .*missing_path"):
        run_child("it", "bench_native", ["perplexity", "missing_path", "missing_text"])
