"""Each step and their order against transformers, the distribution against softmax, the noise against itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions, candidates, softmax, uniform
from edgeloop.runtime.errors import EngineError, UsageError

VOCAB = 200
LOGITS = np.random.default_rng(3).normal(0, 3, VOCAB).astype(np.float32)


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
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("frequency_penalty", "0.5"),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value!r}, wanted "):
        SamplingOptions(**{name: value})


def test_an_integer_that_no_float_holds():
    with pytest.raises(UsageError, match="temperature is a number of more than 77 digits, wanted a number"):
        SamplingOptions(temperature=10**400)


@pytest.mark.parametrize(
    ("bias", "told"),
    [
        ([(3, 1.0)], "logit_bias is of type list, wanted a mapping"),
        ({3: float("nan")}, "logit_bias of 3 is nan, wanted a finite number"),
        ({3: float("inf")}, "logit_bias of 3 is inf, wanted a finite number"),
        ({3: "much"}, "logit_bias of 3 is 'much', wanted a number"),
        ({-3: 1.0}, "a token of logit_bias is -3, wanted at least 0"),
        ({1.5: 1.0}, "a token of logit_bias is 1.5, wanted a whole number"),
    ],
)
def test_a_bias_that_is_none_is_named(bias, told):
    with pytest.raises(UsageError, match=told):
        SamplingOptions(logit_bias=bias)


class OpenAIPenalties(LogitsProcessor):
    """logit[j] −= presence · (c[j] > 0) + frequency · c[j], with c[j] the times that j is in the answer."""

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self.presence, self.frequency, self.prompt = presence, frequency, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt :], minlength=scores.shape[-1])
        return scores - self.presence * (counts > 0) - self.frequency * counts


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """One whose ``generate`` puts the processors together; its weights do not matter."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes))


def processed(
    model: LlamaForCausalLM, options: SamplingOptions, logits: np.ndarray, history: list[int], prompt: int
) -> np.ndarray:
    """Scores [V] after the processors that ``generate`` makes, in its order; -inf for what drops out."""
    config = GenerationConfig(
        do_sample=options.temperature > 0,
        temperature=options.temperature or 1.0,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p or None,
        repetition_penalty=options.repetition_penalty,
        sequence_bias=[[[token], bias] for token, bias in options.logit_bias.items()] or None,
    )
    added = LogitsProcessorList()
    if options.penalizes_answer:
        added.append(OpenAIPenalties(options.presence_penalty, options.frequency_penalty, prompt))
    # What ``generate`` does with it before the first step.
    processors = model._get_logits_processor(config, input_ids_seq_length=prompt, logits_processor=added)
    return processors(torch.tensor([history]), torch.from_numpy(logits.copy())[None])[0].numpy()


ALL = SamplingOptions(
    temperature=0.8,
    top_k=60,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.3,
    presence_penalty=0.7,
    frequency_penalty=0.4,
    logit_bias={3: 4.0, 5: -2.5, 8: float("-inf"), 199: 6.0},
)
OPTIONS = {
    "greedy": SamplingOptions(),
    "bias": SamplingOptions(logit_bias=ALL.logit_bias),
    "repetition": SamplingOptions(repetition_penalty=1.3),
    "repetition below 1": SamplingOptions(repetition_penalty=0.7),
    "presence": SamplingOptions(presence_penalty=1.5),
    "frequency": SamplingOptions(frequency_penalty=-0.5),
    "greedy with all penalties": SamplingOptions(
        repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4, logit_bias=ALL.logit_bias
    ),
    "top-k": SamplingOptions(1.0, top_k=7),
    "top-k of all": SamplingOptions(1.0, top_k=900),
    "top-p": SamplingOptions(0.7, top_p=0.9),
    "top-p of one": SamplingOptions(1.0, top_p=1e-6),
    "min-p": SamplingOptions(2.0, min_p=0.2),
    "filters": SamplingOptions(1.3, top_k=40, top_p=0.8, min_p=0.1),
    "all": ALL,
}
HISTORY, PROMPT = [3, 5, 5, 199, 0, 8, 3, 17, 17, 17, 42, 5], 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scores_and_kept_tokens_are_those_of_transformers(model, options, seed):
    """Every step, alone and in company: the order of two steps that do not commute shows in the last case."""
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    before = logits.copy()
    wanted = processed(model, options, logits, HISTORY, PROMPT)
    scores = Sampler(options, PROMPT).adjusted(logits, HISTORY) / np.float64(options.temperature or 1)
    np.testing.assert_array_equal(logits, before)
    if options.temperature == 0:
        np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-6)
        assert Sampler(options, PROMPT).choose(logits, HISTORY, len(HISTORY)) == wanted.argmax()
        return
    kept = candidates(scores, options)
    np.testing.assert_array_equal(kept, np.flatnonzero(np.isfinite(wanted)))
    theirs = torch.softmax(torch.from_numpy(wanted[kept]), 0).numpy()
    np.testing.assert_allclose(softmax(scores[kept]), theirs, rtol=1e-4)


def test_bias_comes_before_the_repetition_penalty():
    logits, bias = np.array([2.0, -1.0], np.float32), {0: -3.0, 1: 2.0}
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0, logit_bias=bias))
    np.testing.assert_array_equal(sampler.adjusted(logits, [0, 1]), [-2.0, 0.5])  # the other way round: -2, 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(1.0, top_k=9),
        SamplingOptions(1.0, min_p=0.1),
        SamplingOptions(1.0, top_k=20, min_p=0.3),
        SamplingOptions(1.0, top_p=0.8),
        SamplingOptions(0.5, top_k=30, top_p=0.6, min_p=0.05),
    ],
    ids=str,
)
def test_ties_stay_or_go_together(model, options, seed):
    """As in transformers, except that its top-p drops some of those that tie with the last one that it keeps."""
    logits = np.random.default_rng(seed).integers(-4, 5, VOCAB).astype(np.float32)
    wanted = np.isfinite(processed(model, options, logits, HISTORY, PROMPT))
    if options.top_p < 1:
        wanted = logits >= logits[wanted].min()
    scores = logits / np.float64(options.temperature)
    np.testing.assert_array_equal(candidates(scores, options), np.flatnonzero(wanted))


def test_presence_and_frequency_count_the_answer_alone():
    options = SamplingOptions(presence_penalty=2.0, frequency_penalty=0.5)
    changed = LOGITS - Sampler(options, 3).adjusted(LOGITS, [7, 7, 9, 9, 4, 4, 4])
    wanted = np.zeros(VOCAB)
    wanted[9], wanted[4] = 2.5, 3.5
    np.testing.assert_allclose(changed, wanted, atol=1e-6)


def test_a_banned_token_never_comes():
    order = np.argsort(-LOGITS)
    banned = {int(token): float("-inf") for token in order[:-1]}
    for temperature in (0.0, 1.0, 3.0):
        options = SamplingOptions(temperature, top_p=0.99 if temperature == 3 else 1.0, logit_bias=banned)
        assert {Sampler(options).choose(LOGITS, [], p) for p in range(20)} == {order[-1]}
    everything = SamplingOptions(logit_bias={token: float("-inf") for token in range(VOCAB)})
    with pytest.raises(UsageError, match="no token is left for position 4: logit_bias bans all of them"):
        Sampler(everything).choose(LOGITS, [], 4)


def test_texts_of_a_bias_need_a_tokenizer():
    with pytest.raises(UsageError, match="no tokenizer to read them; give token ids"):
        Sampler(SamplingOptions(logit_bias={" the": 1.0}))


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
