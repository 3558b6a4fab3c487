"""Pipelined decoding gives the logits of sequential decoding, whatever is drafted; and who is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan
from edgeloop.runtime.decode.pipeline import Pipeline
from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import DepthReader
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.session import Session

PROMPT = np.array([5, 6, 7])
ROUNDING = 2e-5
HEADLESS = (Segment(layers=2, repeats=3),)
FOUR = (Segment(layers=1), Segment(layers=1, repeats=4), Segment(layers=1))
PLANS = (DraftPlan(0), DraftPlan(0, judge=True), DraftPlan(1), DraftPlan(2))
RANDOM = np.random.default_rng(0)
DRAFTS = {
    "own": lambda logits, history, position: int(logits.argmax()),
    "wrong": lambda logits, history, position: (int(logits.argmax()) + 1) % len(logits),
    "random": lambda logits, history, position: int((logits.argmax() + RANDOM.integers(2)) % len(logits)),
}


def full_depth(loop, draft, plan=DraftPlan(0)):  # noqa: B008 - frozen
    return Pipeline(loop, draft, FixedPlan(loop.backend.program.depths, plan))


def follow(backend, plan, draft, capacity=24):
    """Sequential greedy logits, and the pipeline's for the same tokens, to the end of the context."""
    loops = [SequentialDecoder(backend, backend.new_cache(1, capacity)) for _ in range(2)]
    pipeline = full_depth(loops[1], draft, plan)
    wanted = loops[0].prompt(PROMPT).copy()
    loops[1].prompt(PROMPT)
    pipeline.begin(PROMPT)
    while loops[0].cached < capacity:
        token = int(wanted[-1].argmax())
        wanted = loops[0].prompt(np.array([token])).copy()
        np.testing.assert_allclose(pipeline.step(token), wanted, atol=ROUNDING)
    return loops[1]


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("segments", [None, HEADLESS, FOUR], ids=["epilogue", "no epilogue", "four depths"])
def test_logits_are_sequential(maker, segments, plan, draft):
    program = maker.program() if segments is None else maker.program(segments)
    loop = follow(maker.backend(program), plan, draft)
    assert loop.cached == loop.capacity


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_a_sliding_window_is_not_moved_by_drafts(maker, monkeypatch, draft):
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)
    follow(maker.backend(maker.program(sliding_window=5)), DraftPlan(0, judge=True), draft)


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_depths_that_share_keys_and_values(maker, draft):
    follow(maker.backend(maker.program(FOUR, kv="shared")), DraftPlan(0), draft)


def test_right_drafts_cost_less_than_all_depths(maker):
    backend = maker.backend(maker.program(HEADLESS))
    loop = SequentialDecoder(backend, backend.new_cache(1, 64))
    logits = loop.prompt(PROMPT)
    text = list(PROMPT)
    for _ in range(40):
        text.append(int(logits[-1].argmax()))
        logits = loop.prompt(np.array(text[-1:]))
    loop.reset()
    pipeline = full_depth(loop, lambda logits, history, position: text[position])
    loop.prompt(PROMPT)
    pipeline.begin(PROMPT)
    loop.clock.restart()
    for token in text[3:30]:
        pipeline.step(token)
    assert loop.clock.acceptance == 1
    assert loop.clock.block_calls == 27 + 2


def test_a_truncated_loop_goes_on(maker):
    backend = maker.backend(maker.program())
    loop, other = (SequentialDecoder(backend, backend.new_cache(1, 24)) for _ in range(2))
    pipeline = full_depth(loop, DRAFTS["own"])
    loop.prompt(PROMPT)
    pipeline.begin(PROMPT)
    for token in (1, 2, 3, 4):
        pipeline.step(token)
    pipeline.cancel()
    loop.truncate(4)
    other.prompt(np.array([*PROMPT, 1]))
    np.testing.assert_allclose(pipeline.step(9), other.prompt(np.array([9])), atol=ROUNDING)


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
    ("program", "options", "message"),
    [
        ({"segments": (Segment(layers=2),)}, {}, "one depth"),
        ({}, {"kv": "last"}, "fewer KV slots than depths"),
    ],
)
def test_who_is_refused(text_bundle, program, options, message):
    with pytest.raises(UsageError, match=message):
        Session.open(text_bundle(**program), engine="reference", decode="pipelined", **options)


def test_an_unknown_way_is_refused(text_bundle):
    with pytest.raises(UsageError, match="decode 'both'; known: sequential, pipelined"):
        Session.open(text_bundle(), engine="reference", decode="both")


@pytest.fixture
def drafting(monkeypatch):
    """Sessions that draft from the first token to the last."""
    monkeypatch.setattr(
        "edgeloop.runtime.session.DraftController",
        lambda depths: FixedPlan(depths, DraftPlan(0, judge=depths > 2)),
    )


def both(folder, run, **options):
    """What ``run`` makes of a session, sequential and pipelined."""
    found = []
    for decode in ("sequential", "pipelined"):
        with Session.open(folder, engine="reference", decode=decode, **options) as session:
            found.append(run(session))
    return found


def test_ends_in_the_middle_of_a_pipeline(text_bundle, drafting, tmp_path):
    """max_tokens, the end of the context, a stop string, an end-of-text token; each with drafts in flight."""
    folder = text_bundle().rename(tmp_path / "endless")
    sampling = SamplingOptions(temperature=1.0, seed=4)

    def texts(session):
        whole = list(session.generate([5, 6, 7], 40, sampling=sampling))
        stop = "".join(step.text for step in whole)[5:8]
        return [
            [s.token for s in whole],
            [s.token for s in session.generate([5, 6, 7], 1, sampling=sampling)],
            [s.token for s in session.generate([5, 6, 7], 500, sampling=sampling)],
            [s.text for s in session.generate([5, 6, 7], 40, sampling=sampling, stop=[stop])],
            [s.token for s in session.generate([5, 6, 7], 13)],
        ]

    wanted, found = both(folder, texts)
    assert found == wanted
    wanted, found = both(folder, texts, context=17)
    assert found == wanted
    end = wanted[0][7]
    wanted, found = both(text_bundle(eos_token_ids=(end,)), texts)
    assert found == wanted
    assert wanted[2][-1] == end
    assert len(wanted[2]) <= 8


def test_logits_between_generations(text_bundle, drafting):
    """Whatever else a session does with the loop, drafts of a generation that was left do not show."""

    def mixed(session):
        next(session.generate([9, 9, 3], 30))
        logits = session.logits([1, 2, 3, 4])
        left = session.generate([4, 4], 20)
        begun = [next(left).token for _ in range(5)]
        return logits, begun, [s.token for s in session.generate([4, 4], 20)]

    wanted, found = both(text_bundle(), mixed)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert found[1:] == wanted[1:]
    assert found[2][:5] == found[1]


def critical(freedom):
    """The chi-square that a true distribution passes with probability 0.001 (Wilson and Hilferty)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.09 * part**0.5) ** 3


def test_samples_have_the_distribution_of_full_depth(maker):
    """Three tokens of a vocabulary of four, for a thousand seeds, against the product of the softmaxes."""
    vocab, temperature, seeds = 4, 0.8, 1000
    program = maker.program(
        (Segment(layers=1, repeats=3),), vocab_size=vocab, hidden_size=16, context_length=16
    )
    backend = maker.backend(program)
    loop = SequentialDecoder(backend, backend.new_cache(1, 16))
    prompt = np.array([1, 2])

    def softmax(logits):
        e = np.exp((logits - logits.max()) / temperature)
        return e / e.sum()

    wanted, shallow = np.empty((2, vocab, vocab, vocab))
    exits = SequentialDecoder(backend, backend.new_cache(1, 16))
    for text in np.ndindex(vocab, vocab, vocab):
        found = {}
        exits.reset()
        DepthReader(exits).run(
            np.array([*prompt, *text]), lambda d, at, logits, found=found: found.update({d: logits.copy()})
        )
        for kept, depth in ((wanted, 2), (shallow, 0)):
            kept[text] = np.prod([softmax(found[depth][1 + i])[token] for i, token in enumerate(text)])
    counts = np.zeros_like(wanted)
    for seed in range(seeds):
        choose = Sampler(SamplingOptions(temperature=temperature, seed=seed)).choose
        pipeline = full_depth(loop, choose, DraftPlan(0, judge=True))
        loop.reset()
        logits = loop.prompt(prompt)
        pipeline.begin(prompt)
        text = list(prompt)
        for position in range(2, 5):
            text.append(choose(logits[-1], np.array(text), position))
            logits = pipeline.step(text[-1])
        counts[tuple(text[2:])] += 1

    def chi_square(distribution):
        expected = seeds * distribution.ravel()
        cells = expected >= 5
        seen = np.append(counts.ravel()[cells], counts.ravel()[~cells].sum())
        expected = np.append(expected[cells], expected[~cells].sum())
        kept = expected > 0
        return ((seen - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1

    found, freedom = chi_square(wanted / wanted.sum())
    assert wanted.sum() == pytest.approx(1)
    assert found < critical(freedom)
    other, freedom = chi_square(shallow)
    assert other > 2 * critical(freedom)  # the drafts' own distribution is another one
