"""Filters against transformers, the distribution against softmax, the noise against itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions, candidates, penalize, uniform
from edgeloop.runtime.errors import EngineError, UsageError

LOGITS = np.random.default_rng(3).normal(0, 3, 200).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1e-320),
        ("temperature", "1"),
        ("top_k", 2.5),
        ("seed", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value!r}, wanted "):
        SamplingOptions(**{name: value})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        (SamplingOptions(1.0, top_k=7), [TopKLogitsWarper(7)]),
        (SamplingOptions(1.0, top_k=900), [TopKLogitsWarper(900)]),
        (SamplingOptions(0.7, top_p=0.9), [TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.9)]),
        (SamplingOptions(1.0, top_p=1e-6), [TopPLogitsWarper(1e-6)]),
        (SamplingOptions(2.0, min_p=0.2), [TemperatureLogitsWarper(2.0), MinPLogitsWarper(0.2)]),
        (
            SamplingOptions(1.3, top_k=40, top_p=0.8, min_p=0.1),
            [
                TemperatureLogitsWarper(1.3),
                TopKLogitsWarper(40),
                TopPLogitsWarper(0.8),
                MinPLogitsWarper(0.1),
            ],
        ),
    ],
)  # fmt: skip
def test_filters_leave_what_transformers_leaves(options, warpers, seed):
    logits = np.random.default_rng(seed).normal(0, 3, 200).astype(np.float32)
    scores = torch.from_numpy(logits)[None]
    for warper in warpers:
        scores = warper(None, scores)
    wanted = np.flatnonzero(np.isfinite(scores[0].numpy()))
    np.testing.assert_array_equal(candidates(logits / np.float64(options.temperature), options), wanted)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty):
    history = [3, 5, 5, 199, 0]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = processor(torch.tensor([history]), torch.from_numpy(LOGITS.copy())[None])[0].numpy()
    before = LOGITS.copy()
    np.testing.assert_allclose(penalize(LOGITS, history, penalty), wanted, rtol=1e-6)
    np.testing.assert_array_equal(LOGITS, before)


def test_greedy_takes_the_largest():
    assert Sampler(SamplingOptions()).choose(LOGITS, [], 0) == int(LOGITS.argmax())
    best = int(LOGITS.argmax())
    assert Sampler(SamplingOptions(repetition_penalty=50.0)).choose(LOGITS, [best], 1) != best


def test_the_distribution_is_the_softmax():
    logits = np.array([1.0, 0.2, -0.5, 0.9, -2.0, 0.0], np.float32)
    sampler, draws = Sampler(SamplingOptions(temperature=0.8, seed=11)), 20_000
    counts = np.bincount([sampler.choose(logits, [], p) for p in range(draws)], minlength=6)
    wanted = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum() * draws
    assert ((counts - wanted) ** 2 / wanted).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_filtered_tokens_never_come_and_the_rest_keep_their_odds():
    logits = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    sampler, draws = Sampler(SamplingOptions(temperature=1.0, top_k=2, seed=5)), 10_000
    counts = np.bincount([sampler.choose(logits, [], p) for p in range(draws)], minlength=4)
    assert counts[2:].sum() == 0
    assert counts[0] / draws == pytest.approx(1 / (1 + np.exp(-1)), abs=0.02)


def test_seed_and_position_alone_decide():
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    first = [sampler.choose(LOGITS, [], p) for p in range(30)]
    assert first == [Sampler(sampler.options).choose(LOGITS, [1, 2], p) for p in reversed(range(30))][::-1]
    assert first != [
        Sampler(SamplingOptions(temperature=1.0, seed=2)).choose(LOGITS, [], p) for p in range(30)
    ]


def test_noise_of_neighbouring_positions_does_not_overlap():
    a, b = uniform(0, 7, 400), uniform(0, 8, 400)
    assert not set(a) & set(b)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.2


def test_nan_is_an_error():
    logits = LOGITS.copy()
    logits[9] = np.nan
    for options in (
        SamplingOptions(),
        SamplingOptions(temperature=1.0, top_p=0.9),
        SamplingOptions(1.0, top_k=5),
    ):
        with pytest.raises(EngineError, match="NaN"):
            Sampler(options).choose(logits, [], 0)
