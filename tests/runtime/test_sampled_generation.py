"""Sampling options and log-probabilities from end to end: sequential, pipelined and batched decoding agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import ContextError, UsageError
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session, Step

PROMPT = [5, 6, 7, 5, 90]
OPTIONS = {
    "greedy": SamplingOptions(
        presence_penalty=0.4, frequency_penalty=0.3, logit_bias={11: 0.2, 12: -math.inf}
    ),
    "sampled": SamplingOptions(
        temperature=1.1,
        top_k=80,
        top_p=0.9,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.1,
        logit_bias={"a": 1.5, 40: -3.0},
        seed=8,
    ),
}


@pytest.fixture
def folder(text_bundle):
    return text_bundle()


@pytest.fixture
def session(folder):
    with Session.open(folder, engine="reference") as session:
        yield session


def logprobs_of(steps: list[Step]) -> tuple[list[int], list[list[int]], list[float]]:
    """Tokens, the likeliest tokens beside each, and all log-probabilities of ``steps``."""
    found = [step.logprobs for step in steps if step.logprobs is not None]
    assert len(found) == len(steps)
    values = [value for each in found for value in (each.logprob, *(one.logprob for one in each.top))]
    return [each.token for each in found], [[one.token for one in each.top] for each in found], values


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_way_of_decoding_gives_the_same(folder, session, options):
    steps = list(session.generate(PROMPT, 24, options, logprobs=3))
    tokens, likeliest, values = logprobs_of(steps)
    assert tokens == [step.token for step in steps]
    with Session.open(folder, engine="reference", decode="pipelined") as pipelined:
        others = [list(pipelined.generate(PROMPT, 24, options, logprobs=3))]
    with BatchServer.open(folder, engine="reference", sequences=2) as server:
        handles = [server.submit(PROMPT, 24, options, logprobs=3) for _ in range(2)]
        others += [list(handle.result(60).steps) for handle in handles]
    for other in others:
        found = logprobs_of(other)
        assert found[:2] == (tokens, likeliest)
        np.testing.assert_allclose(found[2], values, atol=1e-4)


def test_steps_have_the_models_own_log_probabilities(session):
    """Whatever sampling makes of the logits."""
    steps = list(session.generate(PROMPT, 12, OPTIONS["sampled"], logprobs=4))
    ids = [*PROMPT, *(step.token for step in steps)]
    wanted = torch.log_softmax(torch.from_numpy(session.logits(ids)).double(), -1)[len(PROMPT) - 1 :].numpy()
    for step, row in zip(steps, wanted, strict=False):
        assert step.logprobs is not None
        assert step.logprobs.logprob == pytest.approx(row[step.token], abs=1e-4)
        assert [one.logprob for one in step.logprobs.top] == pytest.approx(
            np.sort(row)[::-1][:4].tolist(), abs=1e-4
        )


def test_without_asking_there_are_none(session):
    assert [step.logprobs for step in session.generate(PROMPT, 3)] == [None] * 3
    chosen = [step.logprobs for step in session.generate(PROMPT, 3, logprobs=0)]
    assert [each.top for each in chosen if each is not None] == [()] * 3


@pytest.mark.parametrize(
    ("many", "told"),
    [
        (-1, "logprobs is -1, wanted 0 to "),
        (10**6, "logprobs is 1000000, wanted 0 to "),
        (2.0, "logprobs is 2.0, wanted a whole number"),
        (True, "logprobs is True, wanted a whole number"),
    ],
)
def test_how_many_is_checked_at_once(session, many, told):
    with pytest.raises(UsageError, match=told):
        session.generate(PROMPT, 3, logprobs=many)


def test_penalties_leave_the_prompt_alone(session):
    """A token of the prompt that would come next is as likely as without them; one of the answer is not."""
    first = next(session.generate(PROMPT, 1)).token
    strong = SamplingOptions(presence_penalty=1e3)
    assert next(session.generate([*PROMPT[:-1], first, PROMPT[-1]], 1, strong)).token == (
        next(session.generate([*PROMPT[:-1], first, PROMPT[-1]], 1)).token
    )
    tokens = [step.token for step in session.generate(PROMPT, 30, strong)]
    assert len(set(tokens)) == len(tokens)


def test_a_bias_by_text_bans_what_it_names(session):
    free = [step.token for step in session.generate(PROMPT, 8)]
    text = session.tokenizer.pieces[free[0]].decode(errors="replace")
    banned = SamplingOptions(logit_bias={free[0]: -math.inf})
    assert free[0] not in [step.token for step in session.generate(PROMPT, 8, banned)]
    if session.tokenizer.pieces.writers(text):
        named = SamplingOptions(logit_bias={text: -math.inf})
        assert [s.token for s in session.generate(PROMPT, 8, named)] == [
            s.token for s in session.generate(PROMPT, 8, banned)
        ]


def test_a_text_is_scored_as_its_answer_would_be(session):
    """The log-probabilities of a greedy answer are those of the same tokens in a text."""
    steps = list(session.generate(PROMPT, 9, logprobs=2))
    scored = session.score([*PROMPT, *(step.token for step in steps)], top=2)
    assert scored.tokens[0] is None
    answer = [each for each in scored.tokens[len(PROMPT) :] if each is not None]
    tokens, likeliest, _ = logprobs_of(steps)
    assert [each.token for each in answer] == tokens
    assert [[one.token for one in each.top] for each in answer] == likeliest
    for each, step in zip(answer, steps, strict=True):
        assert step.logprobs is not None
        assert each.logprob == pytest.approx(step.logprobs.logprob, abs=1e-4)
    perplexity = session.perplexity(scored.ids).perplexity
    assert math.exp(-scored.total / (len(scored.ids) - 1)) == pytest.approx(perplexity, rel=1e-4)


def test_a_text_is_scored_by_its_tokens(session):
    text = "Once upon a time"
    assert session.score(text).ids == tuple(session.tokenizer.encode(text))
    assert session.score([5]).tokens == (None,)
    with pytest.raises(UsageError, match="top is -1, wanted 0 to "):
        session.score(text, top=-1)
    with pytest.raises(ContextError, match="shorten it"):
        session.score([5] * (session.context + 1))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_context_that_goes_on_gives_the_same(session, options):
    """An answer in two parts, an answer behind a context that is reused, and one that is made anew."""
    whole = [step.token for step in session.generate(PROMPT, 20, options)]
    parts = [step.token for step in session.generate(PROMPT, 12, options)]
    parts += [step.token for step in session.generate(max_tokens=8)]
    assert parts == whole  # the penalties count both parts
    longer = [*PROMPT, *whole, 5, 6]
    grown = logprobs_of(list(session.generate(longer, 12, options, logprobs=2, reuse=True)))
    again = logprobs_of(list(session.regenerate(12, options, logprobs=2)))
    fresh = logprobs_of(list(session.generate(longer, 12, options, logprobs=2)))
    assert grown[:2] == again[:2] == fresh[:2]  # and they begin with the new answer
    np.testing.assert_allclose(grown[2], fresh[2], atol=1e-4)
