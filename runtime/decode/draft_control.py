"""Chooses whether to draft, and at which depth, by a cost model of measured times and measured acceptance.

A plan is a draft depth k, and whether the depths between k and the last judge as well. The last depth as k is
sequential decoding. With acceptance α a token costs the k + 1 passes until the next draft where its draft was right,
and otherwise all R passes of a pipeline that fills again, less those that a judge saves. Times of passes are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

from ..engines.backend import F32, I64
from .sampling import Choose

RECENT = 32
"""Roughly how many samples a running mean covers."""
LOOK = 4
"""Tokens between checks whether drafting can still pay, and before the first trial."""
ENOUGH = 8
"""Predictions of a depth that have to be counted before a plan with that draft depth may be chosen."""
TRIAL = 16
"""Tokens of a trial, which drafts to measure whether it pays; and tokens between choices of a plan."""
FIRST_REST = 64
"""Tokens decoded sequentially after a first trial that failed: its times are those of calls made for the first time."""
REST = 256
"""Tokens decoded sequentially after later ones; twice as many after each that fails, up to ``LONGEST``."""
LONGEST = 4096
MARGIN = 0.98
"""A plan's cost, as a share of the sequential cost, at which it is still chosen: estimates are noisy."""
HOPELESS = 1.1
"""Drafting stops at once where every plan, were its next draft right, would still cost so many times sequential."""


class Mean:
    """A running mean of about the last ``RECENT`` samples."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, sample: float) -> None:
        """Add one sample."""
        self.count += 1
        self.value += (sample - self.value) / min(self.count, RECENT)


class Time(Mean):
    """A running mean of times. The first sample, which includes setting a call up, counts no more than the second; an
    outlier counts twice the mean at most."""

    __slots__ = ()

    def add(self, sample: float) -> None:
        """Add one sample."""
        if self.count == 1:
            self.value = min(self.value, sample)
        super().add(min(sample, 2 * self.value) if self.count else sample)


@dataclass(frozen=True)
class DraftPlan:
    """``depth``: whose prediction is fed as a draft; R − 1: no drafts. ``judge``: whether deeper depths correct it."""

    depth: int
    judge: bool = False


class DraftController:
    """Chooses the plan. A session keeps one, with what it has measured of the model and the machine."""

    def __init__(self, depths: int) -> None:
        self._depths = depths
        self.sequential = DraftPlan(depths - 1)
        self.plan = self.sequential
        self.acceptance = [Mean() for _ in range(depths - 1)]
        """By depth: the share of its predictions that became final."""
        self._block = [Time() for _ in range(depths + 1)]  # by lanes of the call
        self._read = [Time() for _ in range(depths + 1)]  # by rows read out
        self._around = Time()  # the rest of a pass, drafts chosen and all
        self._alone = Time()  # a token decoded sequentially
        self._choice = (
            Time(),
            Time(),
        )  # of the final token: sequentially, and with its noise drawn for a draft
        self._rest = FIRST_REST
        self._left = LOOK  # tokens until the next decision

    def saw(self, depth: int, right: bool) -> None:
        """Count a prediction of ``depth``, which became final (``right``) or did not."""
        self.acceptance[depth].add(float(right))

    def passed(self, lanes: int, block_ns: int, rows: int, read_ns: int, total_ns: int) -> None:
        """Count a pass: nanoseconds of the block call with ``lanes`` lanes, of reading ``rows`` rows, and in all."""
        self._block[lanes].add(block_ns)
        if rows:
            self._read[rows].add(read_ns)
        self._around.add(total_ns - block_ns - read_ns)

    def took(self, ns: int) -> None:
        """Count the nanoseconds of a token under a plan that drafts. Unused here: costs follow from those of passes."""

    def alone(self, ns: int) -> None:
        """Count the nanoseconds of a token that was decoded sequentially."""
        self._alone.add(ns)

    def chose(self, ns: int) -> None:
        """Count the nanoseconds of choosing a final token."""
        self._choice[self.plan != self.sequential].add(ns)

    def timed(self, choose: Choose) -> Choose:
        """Return ``choose`` for final tokens, with its time counted."""

        def chosen(logits: F32, history: I64, position: int) -> int:
            begin = perf_counter_ns()
            token = choose(logits, history, position)
            self.chose(perf_counter_ns() - begin)
            return token

        return chosen

    def token(self) -> None:
        """Count a final token, and change the plan if it is time to."""
        self._left -= 1
        if self.plan == self.sequential:
            if self._left <= 0:
                self._begin()
        elif self._left <= 0:
            best = min(self._plans(ENOUGH) or [self.plan], key=self.cost)
            if self.cost(best) <= MARGIN * self.cost(self.sequential):
                self.plan, self._left, self._rest = best, TRIAL, REST
            else:
                self._give_up()
        elif self._left % LOOK == 0:
            plans = self._plans(LOOK - 1)
            limit = HOPELESS * self.cost(self.sequential)
            if plans and all(self.cost(plan, lucky=True) > limit for plan in plans):
                self._give_up()

    def _begin(self) -> None:
        """Begin a trial. Its acceptance is counted anew: the text is another one now, or another part of it."""
        self.plan, self._left = DraftPlan(0, judge=self._depths > 2), TRIAL
        self.acceptance = [Mean() for _ in self.acceptance]

    def _give_up(self) -> None:
        self.plan, self._left = self.sequential, self._rest
        self._rest = min(max(2 * self._rest, REST), LONGEST)

    def _plans(self, seen: int) -> list[DraftPlan]:
        """Return the plans of whose draft depth at least ``seen`` predictions are counted."""
        known = [k for k in range(self._depths - 1) if self.acceptance[k].count >= seen]
        judges = (False, True) if self._depths > 2 else (False,)
        return [DraftPlan(k, j) for k in known for j in judges if not (j and k == self._depths - 2)]

    def cost(self, plan: DraftPlan, lucky: bool = False) -> float:
        """Return the nanoseconds that a token is expected to take; ``lucky``: if the next draft were right."""
        last, k = self._depths - 1, plan.depth
        if k == last:
            every = self._depths * self._of(self._block, 1) + self._of(self._read, 1) + self._around.value
            return (self._alone.value or every) + self._choice[0].value
        right = self._share(k, lucky)
        steady = sum(self._pass(plan, range(j, last + 1, k + 1)) for j in range(k + 1))
        refill = [self._pass(plan, range(i % (k + 1), i + 1, k + 1)) for i in range(self._depths)]
        wrong = sum(refill)
        if plan.judge and right < 1:
            before = right
            for depth in range(k + 1, last):
                better = max(self._share(depth, lucky) - before, 0.0)
                wrong -= better / (1 - right) * (last - depth) * wrong / self._depths
                before += better
        return right * steady + (1 - right) * wrong + self._choice[1].value

    def _share(self, depth: int, lucky: bool) -> float:
        """Return the acceptance of ``depth``."""
        seen = self.acceptance[depth]
        n = min(seen.count, RECENT)
        return (seen.value * n + 1) / (n + 1) if lucky else seen.value

    def _pass(self, plan: DraftPlan, active: range) -> float:
        """Return the nanoseconds of a pass with tokens at the depths ``active``; idle lanes between cost as much."""
        last = self._depths - 1
        rows = sum(d in (plan.depth, last) or (plan.judge and d > plan.depth) for d in active)
        read = self._of(self._read, rows) if rows else 0.0
        return self._of(self._block, active[-1] - active[0] + 1) + read + self._around.value

    @staticmethod
    def _of(means: list[Time], n: int) -> float:
        """Return the time for n, or for the nearest number that was measured."""
        known = [i for i, mean in enumerate(means) if mean.count]
        return means[min(known, key=lambda i: abs(i - n))].value if known else 0.0


class WholeTokenController(DraftController):
    """For exit rules and routers: measures the cost of whole tokens, under the trial's plan and without drafts."""

    def __init__(self, depths: int) -> None:
        super().__init__(depths)
        self._took = Time()

    def took(self, ns: int) -> None:
        """Count the nanoseconds of a token under the trial's plan."""
        self._took.add(ns)

    def cost(self, plan: DraftPlan, lucky: bool = False) -> float:
        """Return the nanoseconds a token, as measured."""
        if plan == self.sequential:
            return self._alone.value + self._choice[0].value
        return self._took.value + self._choice[1].value

    def _plans(self, seen: int) -> list[DraftPlan]:
        return [self.plan] if self._took.count >= seen else []

    def _begin(self) -> None:
        super()._begin()
        self._took = Time()


class FixedPlan(DraftController):
    """Keeps to one plan."""

    def __init__(self, depths: int, plan: DraftPlan) -> None:
        super().__init__(depths)
        self.plan = plan

    def token(self) -> None:
        """Keep the plan."""
