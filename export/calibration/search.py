"""Thresholds of an exit rule: the least depth that keeps a goal, on what a text gave at every depth.

A token leaves at the first depth d whose score passes: score ≥ θ[d] for a rule that exits ``up`` (confidence,
margin, probe), score ≤ θ[d] for one that exits down (entropy, KL); else it runs all R. Both goals limit the mean over
tokens of an *excess*: 1 where the likeliest token is not that of full depth, or the nats lost against full depth.

**Search.** Thresholds are taken from a grid of at most 256 quantiles a depth. For two depths at a time, the
others held, every pair of grid thresholds is judged at once by a histogram over both scores, and the best that keeps
the goal is taken, until pairs gain nothing. With R ≤ 3 that is the optimum of the grid. With more depths it is a
local one: it starts where a single price per unit of excess, the same at all depths, meets the goal.

**Tiny texts.** A goal that is met by luck on N tokens is missed on the next text. So the excess is judged with a
margin of one standard error, as though one more token had lost one nat (or had disagreed): √(Σ excess² + 1) / N
is added to its mean. At 50 000 tokens that is little; below 100 no token may leave for ``--agree 0.99``. And no
threshold separates fewer than 32 tokens from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.bundle.manifest import NEVER
from ...runtime.errors import UsageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Thresholds = tuple[float, ...]


_LEVELS = 256
_FEWEST = 32
_PRICES = 12  # bisections
_SWEEPS = 20  # over all pairs, unless one gains less than this share of the depth:
_GAIN = 1e-4


@dataclass(frozen=True, eq=False)
class DepthOutcomes:
    """The outcomes of a text of N tokens when it is read out after each of R depths.

    ``loss`` [R, N]: nats of the true next token; ``agree`` [R, N]: the likeliest token is that of full depth.
    """

    loss: npt.NDArray[np.floating]
    agree: Bool

    def __post_init__(self) -> None:
        if self.loss.ndim != 2 or self.loss.shape != self.agree.shape or 0 in self.loss.shape:
            raise ValueError(f"loss is {self.loss.shape}, agree is {self.agree.shape}: wanted both [R, N]")
        if not self.agree[-1].all():
            raise ValueError("full depth does not agree with itself")

    @property
    def depths(self) -> int:
        """R."""
        return len(self.loss)

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.loss.shape[1])

    @cached_property
    def full(self) -> Point:
        """The point of full depth."""
        return Point(float(self.depths), 1.0, math.exp(float(self.loss[-1].mean(dtype=np.float64))))


@dataclass(frozen=True)
class Goal:
    """What an exit rule may cost.

    ``value`` is the least agreement with full depth, or the most perplexity over full depth's, as a share (0.01 is
    +1%).
    """

    kind: Literal["agree", "perplexity"]
    value: float

    @classmethod
    def agree(cls, text: str) -> Goal:
        """Return the goal of ``0.99`` or ``99%``; UsageError unless it is a share in 0 … 1."""
        value = _number(text)
        if value is None or not 0 <= value <= 1:
            raise UsageError(f"--agree {text}: wanted a share from 0 to 1, such as 0.99")
        return cls("agree", value)

    @classmethod
    def perplexity(cls, text: str) -> Goal:
        """Return the goal of ``+1%``; UsageError unless it is a growth of 0% or more. A bare 1 could mean 1% or
        double."""
        value = _number(text)
        if value is None or value < 0 or not text.rstrip().endswith("%"):
            raise UsageError(f"--perplexity {text}: wanted a growth over full depth in percent, such as +1%")
        return cls("perplexity", value)

    def __str__(self) -> str:
        return f"agree {self.value:g}" if self.kind == "agree" else f"perplexity +{self.value * 100:g}%"

    def excess(self, table: DepthOutcomes) -> F64:
        """Return [R, N]: what a token costs when it leaves after each depth; 0 after the last one."""
        if self.kind == "agree":
            return (~table.agree).astype(np.float64)
        lost: F64 = table.loss.astype(np.float64) - table.loss[-1]
        return lost

    @property
    def limit(self) -> float:
        """The most that the mean excess may be."""
        return 1 - self.value if self.kind == "agree" else math.log1p(self.value)


@dataclass(frozen=True)
class Point:
    """What a rule achieved on a text. ``mean_depth`` counts the depths that a token ran, 1 … R."""

    mean_depth: float
    agreement: float
    perplexity: float


def outcome(table: DepthOutcomes, scores: F32, thresholds: Sequence[float], up: bool) -> Point:
    """Return what ``thresholds`` (R − 1) achieve on ``table``; ``scores`` [R − 1, N] is the rule's measure."""
    scores = _checked(table, scores, up)
    limits = np.array(thresholds, np.float32)[:, None]
    passes = scores >= limits if up else scores <= limits
    left = _exit_depths(passes)
    tokens = np.arange(table.tokens)
    return Point(
        mean_depth=float(left.mean()) + 1,
        agreement=float(table.agree[left, tokens].mean()),
        perplexity=math.exp(float(table.loss[left, tokens].mean(dtype=np.float64))),
    )


def search(table: DepthOutcomes, scores: F32, up: bool, goal: Goal, *, margin: float = 1.0) -> Thresholds:
    """Return R − 1 thresholds with the least mean depth that keeps ``goal`` on ``table``, as exact float32 values.

    ``scores`` [R − 1, N] is the rule's measure at each depth but the last. ``margin``: standard errors that the
    goal is kept by; 0 trusts the text. Where nothing keeps the goal, no token leaves (``NEVER``).
    """
    return frontier(table, scores, up, [goal], margin=margin)[0]


def frontier(
    table: DepthOutcomes, scores: F32, up: bool, goals: Sequence[Goal], *, margin: float = 1.0
) -> list[Thresholds]:
    """Return the thresholds of ``search`` for each of ``goals``: the curve of a rule."""
    scores = _checked(table, scores, up)
    edges, bins = _binned(scores if up else -scores)
    sign = 1.0 if up else -1.0
    found = []
    for goal in goals:
        at = _Search(bins, [len(e) for e in edges], goal.excess(table), goal.limit, margin).best()
        values = [float(e[i - 1]) if i <= len(e) else NEVER for e, i in zip(edges, at, strict=True)]
        found.append(tuple(sign * value for value in values))
    return found


class _Search:
    """Search on bins: the token n passes at depth d when ``bins[d, n]`` ≥ the level of d, 1 … levels[d] + 1."""

    def __init__(self, bins: I64, levels: list[int], excess: F64, limit: float, margin: float) -> None:
        self._bins = bins
        self._never = [n + 1 for n in levels]
        self._tokens = bins.shape[1]
        self._limit = limit
        self._margin = margin
        # What leaving after depth d adds up to, for each token: depths, excess, excess². [3, R, N]
        steps = np.broadcast_to(np.arange(len(excess), dtype=np.float64)[:, None], excess.shape)
        self._costs = np.stack([steps, excess, np.square(excess)])

    def best(self) -> list[int]:
        """Return the level of each depth."""
        at = self._priced() if len(self._never) > 2 else list(self._never)
        pairs = list(combinations(range(len(at)), 2)) or [(d, d) for d in range(len(at))]
        depth = self._totals(at)[0]
        for _ in range(_SWEEPS):
            for d, e in pairs:
                steps, excess, squares = self._surface(at, d, e)
                kept = self._keeps(excess, squares)
                kept[at[d] - 1, at[e] - 1 if e > d else 0] = True  # it does; a sum in another order may not
                self._take(at, d, e, np.where(kept, steps, np.inf), excess)
            before, depth = depth, self._totals(at)[0]
            if before - depth <= _GAIN * depth:
                break
        return at

    def _priced(self) -> list[int]:
        """Return the best levels where a unit of excess costs a fixed number of depths, at the least price that
        meets the goal."""
        low, high = -10.0, 20.0  # powers of two
        kept = list(self._never)
        at = list(self._never)
        for _ in range(_PRICES):
            price = 2 ** ((low + high) / 2)
            for _ in range(2):
                for d in range(len(at)):
                    steps, excess, _ = self._surface(at, d, d)
                    self._take(at, d, d, steps + price * excess, excess)
            _, excess, squares = self._totals(at)
            if bool(self._keeps(excess, squares)):
                high, kept = (low + high) / 2, list(at)
            else:
                low = (low + high) / 2
        return kept

    def _take(self, at: list[int], d: int, e: int, cost: F64, excess: F64) -> None:
        """Set the levels of ``d`` and ``e`` to the cheapest ones; of equals, to those with the least excess."""
        cheapest = cost <= cost.min() + 1e-9 * max(1.0, abs(cost.min()))
        i, j = np.unravel_index(np.argmin(np.where(cheapest, excess, np.inf)), cost.shape)
        at[d] = int(i) + 1
        if e > d:
            at[e] = int(j) + 1

    def _surface(self, at: list[int], d: int, e: int) -> tuple[F64, F64, F64]:
        """Return totals of depths, excess and excess² for every level of ``d`` and of ``e``, [levels, levels].

        With ``d`` = ``e`` they are for that one alone, [levels, 1].
        """
        others = self._passes(at)
        others[[d, e]] = False
        left = _exit_depths(others)
        (reached,) = np.nonzero(left > d)
        base = [float(c[left, np.arange(self._tokens)].sum()) for c in self._costs]
        at_d = self._bins[d, reached]
        later = left[reached]
        rows = self._never[d] + 1
        both = reached[later > e] if e > d else reached[:0]
        columns = self._never[e] + 1 if e > d else 2
        cells = self._bins[d, both] * columns + self._bins[e, both]
        sums: list[F64] = []
        for total, cost in zip(base, self._costs, strict=True):
            # Those who pass at d leave there: a sum over all bins from d's level up.
            gain = np.bincount(at_d, cost[d, reached] - cost[later, reached], rows)
            surface = total + np.cumsum(gain[::-1])[::-1][1:, None]
            if e > d:
                # Those who do not, and pass at e: over bins below d's level, and from e's level up.
                gain = np.bincount(cells, cost[e, both] - cost[left[both], both], rows * columns)
                below = np.cumsum(gain.reshape(rows, columns), axis=0)[:-1]
                surface = surface + np.cumsum(below[:, ::-1], axis=1)[:, ::-1][:, 1:]
            sums.append(np.asarray(surface, np.float64))
        return sums[0], sums[1], sums[2]

    def _passes(self, at: list[int]) -> Bool:
        return self._bins >= np.array(at)[:, None]

    def _totals(self, at: list[int]) -> F64:
        left = _exit_depths(self._passes(at))
        return np.asarray(self._costs[:, left, np.arange(self._tokens)].sum(axis=1))

    def _keeps(self, excess: F64, squares: F64) -> Bool:
        error = np.sqrt(np.maximum(squares, 0) + 1) / self._tokens
        # 1e-12: sums in another order differ by that, and a goal that is met exactly is met.
        return np.asarray(excess / self._tokens + self._margin * error <= self._limit + 1e-12)


def _binned(scores: F32) -> tuple[list[F32], I64]:
    """Return thresholds to choose from at each depth, ascending, and how many of them each score passes."""
    tokens = scores.shape[1]
    step = max(_FEWEST, math.ceil(tokens / _LEVELS))
    edges, bins = [], []
    for row in scores:
        finite = np.sort(row[np.isfinite(row)])
        ends = np.arange(len(finite) - step, -1, -step)[::-1]
        ends[:1] = 0  # everyone may leave
        edges.append(np.unique(finite[ends]))
        bins.append(np.searchsorted(edges[-1], np.where(np.isnan(row), -np.inf, row), side="right"))
    return edges, np.array(bins, np.int64).reshape(scores.shape)


def _exit_depths(passes: Bool) -> I64:
    """Return [N]: the first depth that each token passes, else the last; ``passes`` is [R − 1, N]."""
    last = np.ones((1, passes.shape[1]), np.bool_)
    return np.asarray(np.concatenate([passes, last]).argmax(axis=0), np.int64)


def _checked(table: DepthOutcomes, scores: F32, up: bool) -> F32:
    """Return ``scores`` as float32; ValueError unless they are [R − 1, N] of ``table`` and none reaches ``NEVER``."""
    scores = np.asarray(scores, np.float32)
    if scores.shape != (table.depths - 1, table.tokens):
        raise ValueError(f"scores are {scores.shape}, wanted {(table.depths - 1, table.tokens)}")
    if (scores >= NEVER if up else scores <= -NEVER).any():
        raise ValueError(f"a score is beyond {NEVER:g}, where thresholds mean never")
    return scores


def _number(text: str) -> float | None:
    """Return the number of ``0.99``, ``99%`` or ``+1%``; None when it is no finite number."""
    body, percent = text.strip(), text.strip().endswith("%")
    try:
        value = float(body[:-1] if percent else body) / (100 if percent else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
