"""Exit measures against torch's own definitions, and the rules that use them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.bundle.manifest import NEVER, Exit
from edgeloop.runtime.decode.exits import MEASURES, ExitRule, Outcome, parse_rule
from edgeloop.runtime.errors import UsageError

torch = pytest.importorskip("torch")

RANDOM = np.random.default_rng(3)
STATES = RANDOM.standard_normal((3, 5, 8)).astype(np.float32)
LOGITS = 3 * RANDOM.standard_normal((2, 5, 11)).astype(np.float32)
HEADS = {
    "gate.weight": RANDOM.standard_normal(8).astype(np.float32),
    "gate.bias": np.array([-0.5], np.float32),
    "probe.weight": RANDOM.standard_normal((2, 8)).astype(np.float32),
    "probe.bias": np.array([0.3, -0.2], np.float32),
}


def outcome() -> Outcome:
    """Two depths of five tokens."""
    first = Outcome(0, STATES[1], LOGITS[0], Outcome(-1, STATES[0]))
    return Outcome(1, STATES[2], LOGITS[1], first)


def wanted() -> dict[str, object]:
    logits, before = torch.from_numpy(LOGITS[1]), torch.from_numpy(LOGITS[0])
    x = torch.from_numpy(STATES)
    new = torch.distributions.Categorical(logits=logits)
    old = torch.distributions.Categorical(logits=before)
    top = new.probs.topk(2).values
    stop = [torch.sigmoid(x[i] @ torch.from_numpy(HEADS["gate.weight"]) - 0.5) for i in (1, 2)]
    normed = torch.nn.functional.rms_norm(x[2], (8,), eps=1e-6)
    return {
        "confidence": top[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": new.entropy(),
        "kl": torch.distributions.kl_divergence(old, new),
        "entropy-diff": (new.entropy() - old.entropy()).abs(),
        "stable": (logits.argmax(-1) == before.argmax(-1)).float(),
        "latent": (x[2] - x[1]).norm(dim=-1) / x[2].norm(dim=-1),
        "gate": stop[0] + (1 - stop[0]) * stop[1],
        "probe": torch.sigmoid(normed @ torch.from_numpy(HEADS["probe.weight"][1]) - 0.2),
    }


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name: str) -> None:
    found = MEASURES[name].score(outcome(), HEADS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted()[name], rtol=2e-5, atol=1e-6)


def test_nothing_has_moved_before_depth_0() -> None:
    first = outcome().before
    assert first is not None
    assert np.isinf(MEASURES["kl"].score(first, HEADS)).all()
    assert np.isinf(MEASURES["entropy-diff"].score(first, HEADS)).all()
    assert not MEASURES["stable"].score(first, HEADS).any()
    assert np.isfinite(MEASURES["latent"].score(first, HEADS)).all()


def test_a_prediction_is_stable_from_where_it_last_changed() -> None:
    """Likeliest tokens of three rows, depth by depth: how long the last one has been there."""
    out = Outcome(-1, STATES[0][:3])
    for depth, likeliest in enumerate([(4, 1, 2), (3, 1, 2), (4, 1, 5), (4, 1, 2)]):
        out = Outcome(depth, STATES[0][:3], np.eye(11, dtype=np.float32)[list(likeliest)], out)
    assert MEASURES["stable"].score(out, {}).tolist() == [1, 3, 0]


def one(depth: int) -> Outcome:
    return Outcome(depth, STATES[0][:1], LOGITS[0][:1], Outcome(-1, STATES[1][:1]))


@pytest.mark.parametrize(("name", "up"), [("confidence", True), ("entropy", False), ("probe", True)])
def test_a_rule_leaves_on_its_side_of_the_threshold(name: str, up: bool) -> None:
    measure = MEASURES[name]
    score = float(measure.score(one(0), HEADS)[0])
    for threshold, leaves in (
        (score, True),
        (score + 1e-3, not up),
        (score - 1e-3, up),
        (NEVER if up else -NEVER, False),
    ):
        rule = ExitRule(name, 3, measure, (threshold, threshold))
        assert rule.leaves(one(0), HEADS) is leaves


def test_fixed_depths(maker) -> None:
    program = maker.program()
    rule = parse_rule("depth:2", program, {}, {})
    assert [rule.leaves(one(d), {}) for d in (0, 1)] == [False, True]
    assert parse_rule("never", program, {}, {}).never
    for wrong in ("", "0", "-1", "4", "2.0", "9" * 5000):
        with pytest.raises(UsageError, match="wanted depth:1 to depth:3, the depths of this model") as caught:
            parse_rule(f"depth:{wrong}", program, {}, {})
        assert len(str(caught.value)) < 200


def test_calibrated_thresholds_are_the_default(maker) -> None:
    program = maker.program()
    kept = Exit(
        thresholds=(0.5, NEVER), skipped_kv="skip", goal="agree 0.9", tokens=9, perplexity=2, full_perplexity=2,
        agreement=1, mean_depth=2,
    )  # fmt: skip
    assert parse_rule("confidence", program, {}, {"confidence": kept}).thresholds == (0.5, NEVER)
    assert parse_rule("confidence:0.7", program, {}, {"confidence": kept}).thresholds == (0.7, 0.7)
    with pytest.raises(UsageError, match="3 thresholds, wanted 1 or 2"):
        parse_rule("confidence:0.1,0.2,0.3", program, {}, {})
    twice = maker.program((Segment(1, 2),))
    assert parse_rule("confidence:0.1", twice, {}, {}).thresholds == (0.1,)
    with pytest.raises(UsageError, match="2 thresholds, wanted 1$"):
        parse_rule("confidence:0.1,0.2", twice, {}, {})
