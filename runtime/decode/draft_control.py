"""Whether drafting pays, and at which depth: a cost model fed with the clocks and the acceptance that were seen.

A plan is a draft depth k, and whether the depths behind it judge too. The last depth as k is sequential decoding.
With acceptance α a token costs, when its draft was right, the k + 1 passes until the next draft, and otherwise all R
passes of a pipeline that fills again, less those that an intermediate judge saves. The time of a pass is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

from ..engines.backend import F32, I64
from .sampling import Choose

RECENT = 32
"""Samples that a mean is of, roughly."""
LOOK = 4
"""Tokens between looks at whether drafting still has a chance, and before the first trial."""
ENOUGH = 8
"""Predictions of a depth before a plan is chosen for them."""
TRIAL = 16
"""Tokens that are drafted to find out whether it pays, and between choices of a plan."""
FIRST_REST = 64
"""Tokens decoded sequentially after the first trial, whose times are those of calls that have hardly been made yet."""
REST = 256
"""Tokens decoded sequentially between later trials; twice as many after each that failed, up to ``LONGEST``."""
LONGEST = 4096
MARGIN = 0.98
"""Drafting has to promise this share of the sequential time at most: estimates are noisy."""
HOPELESS = 1.1
"""A plan is given up at once where even a lucky next draft leaves it that much dearer than sequential decoding."""


class Mean:
    """A running mean of about the last ``RECENT`` samples."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, sample: float) -> None:
        """One more sample."""
        self.count += 1
        self.value += (sample - self.value) / min(self.count, RECENT)


class Time(Mean):
    """A mean of times. The first is that of making what a call needs, and an outlier counts twice the mean at most."""

    __slots__ = ()

    def add(self, sample: float) -> None:
        """One more sample."""
        if self.count == 1:
            self.value = min(self.value, sample)
        super().add(min(sample, 2 * self.value) if self.count else sample)


@dataclass(frozen=True)
class DraftPlan:
    """``depth``: whose prediction is fed on, R − 1: none before it is final. ``judge``: deeper ones correct it."""

    depth: int
    judge: bool = False


class DraftController:
    """Chooses the plan. One a session: what was learned of the model and the machine stays."""

    def __init__(self, depths: int) -> None:
        self._depths = depths
        self.sequential = DraftPlan(depths - 1)
        self.plan = self.sequential
        self.acceptance = [Mean() for _ in range(depths - 1)]
        """By depth: how often its prediction was the final one."""
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
        """A prediction of ``depth`` became final, or did not."""
        self.acceptance[depth].add(float(right))

    def passed(self, lanes: int, block_ns: int, rows: int, read_ns: int, total_ns: int) -> None:
        """What a pass took: the block's call, reading out ``rows`` rows (0: none), and in all."""
        self._block[lanes].add(block_ns)
        if rows:
            self._read[rows].add(read_ns)
        self._around.add(total_ns - block_ns - read_ns)

    def took(self, ns: int) -> None:
        """What a token took under a plan that drafts; here the cost follows from the calls."""

    def alone(self, ns: int) -> None:
        """What a token took that was decoded sequentially."""
        self._alone.add(ns)

    def chose(self, ns: int) -> None:
        """What choosing the final token took."""
        self._choice[self.plan != self.sequential].add(ns)

    def timed(self, choose: Choose) -> Choose:
        """``choose`` for final tokens: the same, and its time counts."""

        def chosen(logits: F32, history: I64, position: int) -> int:
            begin = perf_counter_ns()
            token = choose(logits, history, position)
            self.chose(perf_counter_ns() - begin)
            return token

        return chosen

    def token(self) -> None:
        """One more token is final: the plan may change with it."""
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
        """A trial: by its own drafts alone, for the text is another one now, or another part of it."""
        self.plan, self._left = DraftPlan(0, judge=self._depths > 2), TRIAL
        self.acceptance = [Mean() for _ in self.acceptance]

    def _give_up(self) -> None:
        self.plan, self._left = self.sequential, self._rest
        self._rest = min(max(2 * self._rest, REST), LONGEST)

    def _plans(self, seen: int) -> list[DraftPlan]:
        """Those of whose draft depth ``seen`` predictions are known."""
        known = [k for k in range(self._depths - 1) if self.acceptance[k].count >= seen]
        judges = (False, True) if self._depths > 2 else (False,)
        return [DraftPlan(k, j) for k in known for j in judges if not (j and k == self._depths - 2)]

    def cost(self, plan: DraftPlan, lucky: bool = False) -> float:
        """Nanoseconds that a token is expected to take; ``lucky``: were one more draft seen, a right one."""
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
        """The acceptance of ``depth``."""
        seen = self.acceptance[depth]
        n = min(seen.count, RECENT)
        return (seen.value * n + 1) / (n + 1) if lucky else seen.value

    def _pass(self, plan: DraftPlan, active: range) -> float:
        """A pass with lanes at the depths ``active``; idle ones between them cost as much."""
        last = self._depths - 1
        rows = sum(d in (plan.depth, last) or (plan.judge and d > plan.depth) for d in active)
        read = self._of(self._read, rows) if rows else 0.0
        return self._of(self._block, active[-1] - active[0] + 1) + read + self._around.value

    @staticmethod
    def _of(means: list[Time], n: int) -> float:
        """The time of n, or of the nearest number that was measured."""
        known = [i for i, mean in enumerate(means) if mean.count]
        return means[min(known, key=lambda i: abs(i - n))].value if known else 0.0


class WholeTokenController(DraftController):
    """For tokens that leave where they like: what a token takes is measured as a whole, and no plan but the trial's."""

    def __init__(self, depths: int) -> None:
        super().__init__(depths)
        self._took = Time()

    def took(self, ns: int) -> None:
        """What a token took that was decoded under this plan."""
        self._took.add(ns)

    def cost(self, plan: DraftPlan, lucky: bool = False) -> float:
        """Nanoseconds a token, as measured."""
        if plan == self.sequential:
            return self._alone.value + self._choice[0].value
        return self._took.value + self._choice[1].value

    def _plans(self, seen: int) -> list[DraftPlan]:
        return [self.plan] if self._took.count >= seen else []

    def _begin(self) -> None:
        super()._begin()
        self._took = Time()


class FixedPlan(DraftController):
    """Always the same plan."""

    def __init__(self, depths: int, plan: DraftPlan) -> None:
        super().__init__(depths)
        self.plan = plan

    def token(self) -> None:
        """Nothing changes."""
