"""The one harness: contenders take turns, round by round, until the spread is small or the time is up.

A machine that is slow for a while is slow for all contenders of a round, so ratios are taken round by round. What other
programs took of the cores is looked at turn by turn; a disturbed turn is counted and left out, unless all of a
contender's turns are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..console import Progress
from ..machine_load import ForeignLoad
from .interval import Estimate, estimate

FOREIGN = 0.05
"""The share of the cores from which on a turn is disturbed."""
WINDOW = 0.5
"""Seconds over which others' work is looked at at least: the system counts it in hundredths of a second."""
ENOUGH = 5
"""Undisturbed rounds that there are at least, where nobody says how many."""
MOST = 1000
"""Rounds at most: turns of a microsecond have shown by then what they can."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How much is measured: exactly ``rounds``, or at least ``ENOUGH`` undisturbed ones and until every interval is
    ``spread`` of its median or narrower, ``seconds`` at most. ``warm`` rounds come first and are not counted; ``rest``
    seconds before every turn let another contender's threads fall asleep."""

    rounds: int | None = None
    spread: float = 0.03
    seconds: float = 60.0
    warm: int = 1
    rest: float = 0.0


@dataclass
class Turns(Generic[T]):
    """What a contender's counted turns gave, and the share of the cores that others took meanwhile (None: unknown)."""

    values: list[T] = field(default_factory=list)
    foreign: list[float | None] = field(default_factory=list)

    def add(self, value: T, foreign: float | None = None) -> None:
        """Count a turn."""
        self.values.append(value)
        self.foreign.append(foreign)

    @property
    def calm(self) -> list[int]:
        """The numbers of the turns that nothing disturbed."""
        return [i for i, share in enumerate(self.foreign) if (share or 0.0) <= FOREIGN]

    @property
    def disturbed(self) -> int:
        """How many turns others disturbed."""
        return len(self.values) - len(self.calm)

    @property
    def kept(self) -> list[T]:
        """The undisturbed turns, or all where there is none."""
        return [self.values[i] for i in self.calm] or self.values

    def estimate(self, figure: Callable[[T], float]) -> Estimate:
        """Return what ``figure`` of the kept turns is."""
        return estimate([figure(value) for value in self.kept])

    def over(self, other: Turns[T], figure: Callable[[T], float]) -> Estimate:
        """Return ``figure`` over that of ``other``, round by round where neither was disturbed, or in all rounds."""
        both = sorted(set(self.calm) & set(other.calm)) or range(len(self.values))
        return estimate([figure(self.values[i]) / figure(other.values[i]) for i in both])


def take_turns(
    contenders: Mapping[K, Callable[[], T]],
    figure: Callable[[T], float],
    effort: Effort,
    progress: Progress = lambda step, fraction: None,
    names: Callable[[K], str] = lambda key: "in turns",
) -> dict[K, Turns[T]]:
    """Run every contender once a round; return its counted turns.

    ``figure``: the number of a turn whose spread has to be small. ``names``: how progress calls a contender.
    """
    found: dict[K, Turns[T]] = {key: Turns() for key in contenders}
    watch, began, number = _Watch(), time.monotonic(), -effort.warm
    while number < 0 or not _enough(list(found.values()), figure, effort, time.monotonic() - began):
        done = _done(number, effort, time.monotonic() - began)
        for key, run in contenders.items():
            progress(f"warming up, {names(key)}" if number < 0 else f"measuring, {names(key)}", done)
            if effort.rest:
                time.sleep(effort.rest)
            watch.begin()
            value = run()
            if number >= 0:
                found[key].add(value, watch.share())
        number += 1
        if number == 0:
            began = time.monotonic()
    return found


def disturbed(every: Sequence[Turns[Any]]) -> tuple[int, int]:
    """Return how many turns others disturbed, of how many."""
    return sum(turns.disturbed for turns in every), sum(len(turns.values) for turns in every)


def _enough(turns: Sequence[Turns[T]], figure: Callable[[T], float], effort: Effort, seconds: float) -> bool:
    rounds = len(turns[0].values) if turns else MOST
    if effort.rounds is not None:
        return rounds >= effort.rounds
    if rounds and (seconds >= effort.seconds or rounds >= MOST):
        return True
    return all(len(one.calm) >= ENOUGH and one.estimate(figure).width <= effort.spread for one in turns)


def _done(number: int, effort: Effort, seconds: float) -> float:
    if number < 0:
        return 0.0
    if effort.rounds is not None:
        return (number + effort.warm) / (effort.rounds + effort.warm)
    return min(seconds / effort.seconds, 1.0)


class _Watch:
    """Others' work since a turn's beginning, or over ``WINDOW`` where the turn is shorter."""

    def __init__(self) -> None:
        self._marks = deque([ForeignLoad()])

    def begin(self) -> None:
        """A turn begins."""
        while len(self._marks) > 1 and self._marks[1].seconds >= WINDOW:
            self._marks.popleft()
        self._marks.append(ForeignLoad())

    def share(self) -> float | None:
        """Return the share of the cores that others took; None where the system, or so short a time, does not say."""
        old_enough = (mark for mark in reversed(self._marks) if mark.seconds >= WINDOW)
        mark = next(old_enough, None)
        return None if mark is None else mark.share()
