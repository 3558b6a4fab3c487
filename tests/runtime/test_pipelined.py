"""Pipelined decoding gives the logits of sequential decoding, whatever is drafted; and who is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.acceptance import Fixed, Pace, Plan
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.loop import DepthLoop
from edgeloop.runtime.pipelined import Pipelined
from edgeloop.runtime.sampling import SamplingOptions
from edgeloop.runtime.session import Session
from edgeloop.runtime.spec import Segment

PROMPT = np.array([5, 6, 7])
ROUNDING = 2e-5
HEADLESS = (Segment(layers=2, repeats=3),)
FOUR = (Segment(layers=1), Segment(layers=1, repeats=4), Segment(layers=1))
PLANS = (Plan(0), Plan(0, judge=True), Plan(1), Plan(2))
RANDOM = np.random.default_rng(0)
DRAFTS = {
    "own": lambda logits, history, position: int(logits.argmax()),
    "wrong": lambda logits, history, position: (int(logits.argmax()) + 1) % len(logits),
    "random": lambda logits, history, position: int((logits.argmax() + RANDOM.integers(2)) % len(logits)),
}


def follow(backend, plan, draft, capacity=24):
    """Sequential greedy logits, and the pipeline's for the same tokens, to the end of the context."""
    loops = [DepthLoop(backend, backend.new_cache(1, capacity)) for _ in range(2)]
    pipeline = Pipelined(loops[1], draft, Fixed(backend.spec.depths, plan))
    wanted = loops[0].forward(PROMPT).copy()
    loops[1].forward(PROMPT)
    pipeline.begin(PROMPT)
    while loops[0].cached < capacity:
        token = int(wanted[-1].argmax())
        wanted = loops[0].forward(np.array([token])).copy()
        np.testing.assert_allclose(pipeline.step(token), wanted, atol=ROUNDING)
    return loops[1]


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("segments", [None, HEADLESS, FOUR], ids=["coda", "no coda", "four depths"])
def test_logits_are_sequential(maker, segments, plan, draft):
    spec = maker.spec() if segments is None else maker.spec(segments)
    loop = follow(maker.backend(spec), plan, draft)
    assert loop.cached == loop.capacity


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_a_sliding_window_is_not_moved_by_drafts(maker, monkeypatch, draft):
    monkeypatch.setattr("edgeloop.runtime.kv.SLACK", 3)
    follow(maker.backend(maker.spec(sliding_window=5)), Plan(0, judge=True), draft)


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_depths_that_share_keys_and_values(maker, draft):
    follow(maker.backend(maker.spec(FOUR, kv="shared")), Plan(0), draft)


def test_right_drafts_cost_less_than_all_depths(maker):
    backend = maker.backend(maker.spec(HEADLESS))
    loop = DepthLoop(backend, backend.new_cache(1, 64))
    logits = loop.forward(PROMPT)
    text = list(PROMPT)
    for _ in range(40):
        text.append(int(logits[-1].argmax()))
        logits = loop.forward(np.array(text[-1:]))
    loop.reset()
    pipeline = Pipelined(loop, lambda logits, history, position: text[position], Fixed(3, Plan(0)))
    loop.forward(PROMPT)
    pipeline.begin(PROMPT)
    loop.clock.restart()
    for token in text[3:30]:
        pipeline.step(token)
    assert loop.clock.acceptance == 1
    assert loop.clock.block_calls == 27 + 2


def test_a_truncated_loop_goes_on(maker):
    backend = maker.backend(maker.spec())
    loop, other = (DepthLoop(backend, backend.new_cache(1, 24)) for _ in range(2))
    pipeline = Pipelined(loop, DRAFTS["own"], Fixed(3, Plan(0)))
    loop.forward(PROMPT)
    pipeline.begin(PROMPT)
    for token in (1, 2, 3, 4):
        pipeline.step(token)
    loop.truncate(4)
    other.forward(np.array([*PROMPT, 1]))
    np.testing.assert_allclose(pipeline.step(9), other.forward(np.array([9])), atol=ROUNDING)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(),
        SamplingOptions(temperature=1.2, seed=3),
        SamplingOptions(temperature=0.8, repetition_penalty=1.3),
    ],
    ids=["greedy", "sampled", "penalty"],
)
def test_sessions_write_the_same(text_bundle, sampling):
    folder = text_bundle()
    found = []
    for decode in ("sequential", "pipelined"):
        with Session.open(folder, engine="reference", decode=decode) as session:
            found.append([s.token for s in session.generate([5, 6, 7], 99, sampling=sampling)])
            for _ in session.generate([9, 9], 9):
                break  # left early, with drafts in flight
            found.append([s.token for s in session.generate([5, 6, 7], 20, sampling=sampling)])
    assert found[0] == found[2]
    assert found[1] == found[3]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ({"segments": (Segment(layers=2),)}, {}, "one depth"),
        ({}, {"exit": "depth:2"}, "exit rule 'depth:2'"),
        ({}, {"kv": "last"}, "one KV slot"),
        ({"kv": "shared"}, {}, "without own norms or deltas"),
    ],
)
def test_who_is_refused(text_bundle, spec, options, message):
    with pytest.raises(UsageError, match=message):
        Session.open(text_bundle(**spec), engine="reference", decode="pipelined", **options)


def test_an_unknown_way_is_refused(text_bundle):
    with pytest.raises(UsageError, match="decode 'both'; known: sequential, pipelined"):
        Session.open(text_bundle(), engine="reference", decode="both")


def test_the_pace_follows_acceptance_and_clocks():
    for right, plan in ((True, Plan(0)), (False, Plan(2))):
        pace = Pace(3)
        for _ in range(40):
            pace.saw(0, right)
            pace.saw(1, right)
            for lanes, ns in ((1, 100), (2, 115), (3, 160)):
                pace.passed(lanes, ns, min(lanes, 2), 50, ns + 60)
            pace.token()
        assert pace.plan.depth == plan.depth
        assert (pace.cost(Plan(0)) < pace.cost(pace.sequential)) == right
