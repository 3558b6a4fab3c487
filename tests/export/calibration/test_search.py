"""Thresholds against brute force, and the goals that they must never break."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from edgeloop.export.calibration.search import DepthOutcomes, Goal, frontier, outcome, search
from edgeloop.runtime.bundle.manifest import NEVER
from edgeloop.runtime.errors import UsageError


def text(depths: int, tokens: int, seed: int = 0, noise: float = 1.0) -> tuple[DepthOutcomes, np.ndarray]:
    """A table whose tokens settle at random depths, and scores that know it up to ``noise``."""
    rng = np.random.default_rng(seed)
    settles = rng.uniform(-0.4, 0.7, tokens) * depths
    depth = np.arange(depths)[:, None]
    agree = (depth >= settles) | (rng.random((depths, tokens)) < 0.1)
    agree[-1] = True
    harm = np.clip(settles - depth, 0, None) * rng.normal(0.2, 0.15, (depths, tokens))
    loss = rng.exponential(2, tokens) + harm
    scores = 1 / (1 + np.exp(settles - depth - noise * rng.standard_normal((depths, tokens))))
    return DepthOutcomes(loss, agree), scores[:-1].astype(np.float32)


def keeps(table: DepthOutcomes, goal: Goal, found: float) -> bool:
    limit = goal.value if goal.kind == "agree" else table.full.perplexity * (1 + goal.value)
    return found >= limit - 1e-12 if goal.kind == "agree" else found <= limit * (1 + 1e-9)


def quality(goal: Goal, point: object) -> float:
    return float(getattr(point, "agreement" if goal.kind == "agree" else "perplexity"))


def test_outcome_by_hand() -> None:
    loss = np.log(np.array([[4.0, 4, 4, 4], [3, 3, 3, 3], [2, 2, 2, 2]]))
    agree = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], np.bool_)
    scores = np.array([[0.9, 0.5, 0.1, 0.1], [0, 0.7, 0.6, 0.1]], np.float32)
    found = outcome(DepthOutcomes(loss, agree), scores, (0.9, 0.6), up=True)
    assert found.mean_depth == (1 + 2 + 2 + 3) / 4
    assert found.agreement == 3 / 4
    assert found.perplexity == pytest.approx((4 * 3 * 3 * 2) ** 0.25)
    down = outcome(DepthOutcomes(loss, agree), -scores, (-0.9, -0.6), up=False)
    assert down == found


def test_scores_that_know_give_the_ideal_depth() -> None:
    rng = np.random.default_rng(0)
    settles = rng.integers(0, 4, 6400)
    agree = np.arange(4)[:, None] >= settles
    table = DepthOutcomes(np.where(agree, 1.0, 3.0), agree)
    scores = np.where(agree, 0.9, 0.2)[:-1].astype(np.float32)
    for goal in (Goal("agree", 1), Goal("perplexity", 0)):
        found = outcome(table, scores, search(table, scores, True, goal, margin=0), up=True)
        assert found.mean_depth == pytest.approx(settles.mean() + 1)
        assert found.agreement == 1


@pytest.mark.parametrize("goal", [Goal("agree", 0.97), Goal("perplexity", 0.01)], ids=str)
@pytest.mark.parametrize("up", [True, False])
def test_three_depths_as_well_as_brute_force(goal: Goal, up: bool) -> None:
    table, scores = text(3, 4000)
    scores = scores if up else -scores
    thresholds = search(table, scores, up, goal, margin=0)
    found = outcome(table, scores, thresholds, up)
    assert keeps(table, goal, quality(goal, found))
    levels = [np.quantile(row, np.linspace(0, 1, 60)) for row in scores]
    never = NEVER if up else -NEVER
    points = [outcome(table, scores, pair, up) for pair in itertools.product(*([*x, never] for x in levels))]
    best = min(p.mean_depth for p in points if keeps(table, goal, quality(goal, p)))
    # The grids differ; ours moves 32 tokens at a time at each of two depths.
    assert found.mean_depth <= best + 2 * 32 / 4000


def test_two_depths_to_the_token() -> None:
    table, scores = text(2, 3000)
    ranked = np.argsort(-scores[0])
    wrong = np.cumsum(~table.agree[0, ranked]) / 3000
    most = np.flatnonzero(wrong <= 0.02).max() + 1  # tokens that may leave, best score first
    found = outcome(table, scores, search(table, scores, True, Goal("agree", 0.98), margin=0), up=True)
    assert 2 - most / 3000 <= found.mean_depth <= 2 - (most - 32) / 3000


@pytest.mark.parametrize("depths", [2, 3, 5, 12])
@pytest.mark.parametrize("margin", [0, 1])
def test_random_tables_never_break_a_goal(depths: int, margin: float) -> None:
    rng = np.random.default_rng(depths)
    for tokens in (1, 31, 40, 333, 2000):
        agree = rng.random((depths, tokens)) < rng.random()
        agree[-1] = True
        table = DepthOutcomes(rng.exponential(2, (depths, tokens)), agree)
        scores = np.round(rng.standard_normal((depths - 1, tokens)), 1).astype(np.float32)  # with ties
        for goal in (Goal("agree", 0.9), Goal("agree", 1), Goal("perplexity", 0), Goal("perplexity", 0.05)):
            for up in (True, False):
                thresholds = search(table, scores, up, goal, margin=margin)
                assert len(thresholds) == depths - 1
                found = outcome(table, scores, thresholds, up)
                assert keeps(table, goal, quality(goal, found)), (tokens, goal, up)


def test_many_depths_beat_one_threshold_for_all() -> None:
    table, scores = text(16, 1500, noise=2)
    goal = Goal("agree", 0.95)
    found = outcome(table, scores, search(table, scores, True, goal, margin=0), up=True)
    assert found.agreement >= 0.95
    common = [outcome(table, scores, [t] * 15, up=True) for t in np.quantile(scores, np.linspace(0, 1, 200))]
    assert found.mean_depth < min(p.mean_depth for p in common if p.agreement >= 0.95) < 16


def test_the_margin_keeps_the_goal_on_the_next_text() -> None:
    goal = Goal("agree", 0.97)
    kept = {0.0: 0, 1.0: 0}
    for seed in range(20):
        table, scores = text(3, 1000, seed)
        other, others = text(3, 20000, 1000 + seed)
        for margin in kept:
            found = outcome(other, others, search(table, scores, True, goal, margin=margin), up=True)
            kept[margin] += found.agreement >= 0.97
    assert kept[1.0] >= 14
    assert kept[1.0] > kept[0.0]


def test_a_tiny_text_lets_nobody_leave() -> None:
    agree = np.ones((3, 90), np.bool_)
    table, scores = DepthOutcomes(np.ones((3, 90)), agree), np.ones((2, 90), np.float32)
    assert search(table, scores, True, Goal("agree", 0.99)) == (NEVER, NEVER)
    assert search(table, scores, False, Goal("perplexity", 0.01)) == (-NEVER, -NEVER)
    assert search(table, scores, True, Goal("agree", 0.9))[0] == 1


def test_thresholds_are_float32_and_survive_json() -> None:
    table, scores = text(4, 2000)
    for thresholds in (
        search(table, scores, True, Goal("agree", 0.98)),
        search(table, scores, False, Goal("agree", 1)),
    ):
        assert tuple(json.loads(json.dumps(thresholds, allow_nan=False))) == thresholds
        assert all(type(t) is float for t in thresholds)
        assert all(abs(t) >= NEVER or t == float(np.float32(t)) for t in thresholds)


def test_a_looser_goal_is_no_deeper() -> None:
    table, scores = text(3, 5000)
    goals = [Goal("perplexity", x) for x in (0, 0.005, 0.01, 0.02, 0.05, 10)]
    curve = [outcome(table, scores, t, up=True) for t in frontier(table, scores, True, goals)]
    depths = [p.mean_depth for p in curve]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] == 3
    assert depths[-1] == 1


def test_one_depth_has_nothing_to_choose() -> None:
    table = DepthOutcomes(np.ones((1, 50)), np.ones((1, 50), np.bool_))
    assert search(table, np.zeros((0, 50), np.float32), True, Goal("agree", 0.9)) == ()


def test_a_score_that_is_no_number_does_not_pass() -> None:
    table, scores = text(3, 2000)
    scores[:, :300] = np.nan
    thresholds = search(table, scores, True, Goal("agree", 0.5), margin=0)
    found = outcome(table, scores, thresholds, up=True)
    assert found.mean_depth == pytest.approx((300 * 3 + 1700) / 2000)


def test_goals_from_the_command_line() -> None:
    assert Goal.agree("0.99") == Goal.agree("99%") == Goal("agree", 0.99)
    assert Goal.perplexity("+1%") == Goal.perplexity("1%") == Goal("perplexity", 0.01)
    assert (str(Goal.agree("0.99")), str(Goal.perplexity("+0.5%"))) == ("agree 0.99", "perplexity +0.5%")
    for wrong in ("1.1", "-0.1", "nan", "", "most", "%"):
        with pytest.raises(UsageError, match=f"--agree {wrong}: wanted a share from 0 to 1, such as 0.99"):
            Goal.agree(wrong)
    for wrong in ("-1%", "0.01", "inf%", "", "little"):
        with pytest.raises(UsageError, match="wanted a growth over full depth in percent"):
            Goal.perplexity(wrong)


def test_tables_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted both"):
        DepthOutcomes(np.ones((2, 3)), np.ones((3, 2), np.bool_))
    with pytest.raises(ValueError, match="full depth does not agree"):
        DepthOutcomes(np.ones((2, 3)), np.zeros((2, 3), np.bool_))
    table, scores = text(3, 100)
    with pytest.raises(ValueError, match=r"scores are \(2, 99\), wanted \(2, 100\)"):
        search(table, scores[:, :99], True, Goal("agree", 0.9))
    with pytest.raises(ValueError, match="beyond 1e"):
        outcome(table, np.full_like(scores, np.inf), (0, 0), up=True)
