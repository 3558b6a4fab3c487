"""Pipelined decoding under exit rules gives the logits of the same rule sequentially, whatever is drafted."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan
from edgeloop.runtime.decode.exits import MEASURES, Outcome
from edgeloop.runtime.decode.pipeline import Pipeline
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import DepthReader

PROMPT = np.array([5, 6, 7])
HEADLESS = (Segment(layers=2, repeats=3),)
FOUR = (Segment(layers=1), Segment(layers=1, repeats=4), Segment(layers=1))
RANDOM = np.random.default_rng(0)
DRAFTS = {
    "own": lambda logits, history, position: int(logits.argmax()),
    "wrong": lambda logits, history, position: (int(logits.argmax()) + 1) % len(logits),
    "random": lambda logits, history, position: int((logits.argmax() + RANDOM.integers(2)) % len(logits)),
}
SKIPPED_KV = ("exact", "propagate", "latest", "skip")


def typical(backend, name):
    """``name`` with thresholds that half of a text's tokens pass at each depth."""
    states, logits = {}, {}
    loop = SequentialDecoder(
        backend, backend.new_cache(1, 24), observe=lambda d, state: states.update({d: state[0].copy()})
    )
    DepthReader(loop).run(np.arange(3, 23), lambda d, at, found: logits.update({d: found.copy()}))
    outcome, found = Outcome(-1, loop.entered[0].copy()), []
    for depth in range(backend.program.depths - 1):
        outcome = Outcome(depth, states[depth], logits[depth], outcome)
        scores = MEASURES[name].score(outcome, {})
        found.append(float(np.median(scores)) if np.isfinite(scores).all() else 0.0)
    return f"{name}:{','.join(f'{x:.6f}' for x in found)}"


def follow(backend, text, skipped_kv, draft):
    policy = choose_policy(backend.program, {}, {}, text, skipped_kv)
    loops = [SequentialDecoder(backend, backend.new_cache(1, 24), policy) for _ in range(2)]
    pipeline = Pipeline(loops[1], draft, FixedPlan(backend.program.depths, DraftPlan(0)))
    wanted = loops[0].prompt(PROMPT).copy()
    loops[1].prompt(PROMPT)
    pipeline.begin(PROMPT)
    ran = set()
    while loops[0].cached < 24:
        token = (
            int(wanted[-1].argmax()) if loops[0].cached % 4 else loops[0].cached
        )  # or it says the same for ever
        wanted, depth = loops[0].step(token).copy(), loops[0].depth
        np.testing.assert_allclose(pipeline.step(token), wanted, atol=2e-5)
        assert pipeline.depth == depth
        ran.add(depth)
    if skipped_kv == "skip":
        assert loops[1].filled == loops[0].filled
    return ran


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("skipped_kv", SKIPPED_KV)
@pytest.mark.parametrize("segments", [None, HEADLESS, FOUR], ids=["epilogue", "no epilogue", "four depths"])
def test_logits_are_those_of_early_exit(maker, segments, skipped_kv, draft):
    backend = maker.backend(maker.program() if segments is None else maker.program(segments))
    of_logits = ["confidence", "kl", "entropy-diff", "stable"]
    measures = ["latent"] + of_logits * (segments is HEADLESS)
    ran = set()
    for name in measures:
        ran |= follow(backend, typical(backend, name), skipped_kv, draft)
    assert len(ran) > 1
    assert follow(backend, "depth:2", skipped_kv, draft) == {2}


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("skipped_kv", SKIPPED_KV)
@pytest.mark.parametrize("segments", [None, FOUR], ids=["three depths", "four depths"])
def test_decisions_by_logits_wait_for_the_tokens_before(maker, segments, skipped_kv, draft):
    """Layers after the loop give a token logits only when those before it are final; drafts go on meanwhile."""
    backend = maker.backend(maker.program() if segments is None else maker.program(segments))
    ran = set()
    for name in ("confidence", "kl"):
        ran |= follow(backend, typical(backend, name), skipped_kv, draft)
    assert len(ran) > 1


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("skipped_kv", ["exact", "skip"])
@pytest.mark.parametrize("name", ["latent", "confidence"])
def test_a_sliding_window_is_not_moved_by_drafts(maker, monkeypatch, name, skipped_kv, draft):
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 4)
    backend = maker.backend(maker.program(HEADLESS, sliding_window=5))
    assert len(follow(backend, typical(backend, name), skipped_kv, draft)) > 1


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("name", ["entropy", "confidence"])
def test_depths_that_share_keys_and_values(maker, name, draft):
    """Tokens that left ride along between the deeper ones of a call."""
    backend = maker.backend(maker.program(FOUR, kv="shared"))
    assert len(follow(backend, typical(backend, name), "shared", draft)) > 1


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_states_that_wait_catch_up_when_no_draft_is_under_way(maker, monkeypatch, draft):
    monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", 3)
    backend = maker.backend(maker.program(FOUR))
    for skipped_kv in ("exact", "propagate"):
        assert follow(backend, "depth:1", skipped_kv, draft) == {1}
