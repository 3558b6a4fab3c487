"""Splits lanes of any size into calls of methods that have a fixed number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UsageError
from ..backend import Lanes
from ..packed import PackedLanes

GROUPS = 4
"""Calls of the largest mN method that are worth making before a lane runs as a chunk, which computes all its rows."""


@dataclass(frozen=True)
class LaneRun:
    """``count`` consecutive tokens of lane ``lane``, from its token ``token`` on.

    ``row``: the index of the first among the flattened rows of the state.
    """

    lane: int
    token: int
    count: int
    row: int


@dataclass(frozen=True)
class Batch:
    """One call of a method: runs of a few rows each, or one run as a chunk."""

    runs: tuple[LaneRun, ...]
    chunk: bool

    @property
    def rows(self) -> int:
        """The number of valid rows."""
        return sum(run.count for run in self.runs)


def valid_runs(lanes: Lanes) -> list[LaneRun]:
    """Return the valid tokens of each lane that has some."""
    length, packed, start, runs = lanes.positions.shape[1], isinstance(lanes, PackedLanes), 0, []
    for lane, count in enumerate(lanes.tokens.tolist()):
        if count:
            runs.append(LaneRun(lane, 0, count, start if packed else lane * length))
        start += count
    return runs


def batches(runs: list[LaneRun], most: int, chunk: int) -> Iterator[Batch]:
    """Yield calls in an order in which each token comes after those before it in its lane.

    ``most``: rows of the largest mN method. ``chunk``: rows of the prefill method.
    """
    waiting: list[LaneRun] = []
    for run in runs:
        if run.count > GROUPS * most:
            yield from (Batch((part,), True) for part in _parts(run, chunk))
        else:
            waiting += _parts(run, 1)
    for start in range(0, len(waiting), most):
        yield Batch(tuple(waiting[start : start + most]), False)


def whole_runs(runs: list[LaneRun], chunk: int) -> Iterator[Batch]:
    """Yield one call for each lane, whose tokens see each other and nothing else; UsageError for more than a call
    has."""
    for run in runs:
        if run.count > chunk:
            raise UsageError(
                f"{run.count} tokens at once, and the model was exported for {chunk} at most; shorten the text, or "
                "export it for engine native or onnx"
            )
        yield Batch((run,), run.count > 1)


def _parts(run: LaneRun, size: int) -> Iterator[LaneRun]:
    for start in range(0, run.count, size):
        count = min(size, run.count - start)
        yield LaneRun(run.lane, run.token + start, count, run.row + start)
