"""Tokens that are drafted are those of sequential decoding, bit for bit: every plan, rule, router and policy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from token_modes import MODELS, Opened, heads_of, policies, same_state

from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.modes import PIPELINED, Mode, refusal
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.whole_tokens import sequence_state, token_mode, token_state
from edgeloop.runtime.engines.backend import I64
from edgeloop.runtime.engines.native.decoder import NativeDecoder
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.tokens import Drafting
from edgeloop.runtime.errors import UsageError

PROMPT, STEPS, CAPACITY = np.array([3, 14, 15, 9, 2, 3, 14, 15]), 20, 32
WARM = SamplingOptions(temperature=0.7, top_k=9, seed=4)
PLANS = {
    "where it pays": Drafting(),
    "depth 0": Drafting("always", depth=0),
    "depth 0 with judges": Drafting("always", depth=0, judges=True),
    "depth 1": Drafting("always", depth=1),
    "looked up": Drafting("always", depth=9, lookups=6),
    "all at once": Drafting("always", depth=0, judges=True, lookups=3),
}


def begun(engine: NativeBackend, policy: Policy) -> SequentialDecoder:
    slots = KV_LAYOUTS[policy.kv].slots
    host = SequentialDecoder(engine, engine.new_cache(1, CAPACITY, slots), policy, heads_of(engine.program))
    host.prompt(PROMPT[:-1])
    return host


def drafting(engine: NativeBackend, policy: Policy, plan: Drafting) -> NativeDecoder:
    other = begun(engine, policy)
    mode = token_mode(other.sequence)
    assert mode is not None
    decoder = engine.token_decoder(mode, other.cache, 0)
    decoder.write(token_state(other.sequence))
    decoder.draft(plan)
    decoder.text(PROMPT)
    return decoder


def written(engine: NativeBackend, policy: Policy, options: SamplingOptions) -> tuple[list[int], list, list]:
    """Tokens [STEPS], and of each the logits that chose it and the depths that the token before ran; the state."""
    host, sampler = begun(engine, policy), Sampler(options)
    ids, rows = PROMPT.tolist(), []
    for _ in range(STEPS):
        rows.append((host.step(ids[-1])[0].copy(), host.depth))
        ids.append(sampler.choose(rows[-1][0], ids, len(ids)))
    return ids[len(PROMPT) :], rows, [host.sequence.snapshot()]


@pytest.mark.parametrize("options", [SamplingOptions(), WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_sequential_decoding(opened: Opened, name: str, options: SamplingOptions) -> None:
    """Tokens, logits, depths and the state behind them, under every policy and plan."""
    engine, drafted = opened(name), 0
    for policy in policies(engine.program):
        tokens, rows, (state,) = written(engine, policy, options)
        for plan in PLANS.values():
            decoder = drafting(engine, policy, plan)
            decoder.choose_by(options)
            token = PROMPT[-1].item()
            for wanted, (logits, depth) in zip(tokens, rows, strict=True):
                token = decoder.next(token)
                assert (token, decoder.depth) == (wanted, depth), (policy, plan)
                np.testing.assert_array_equal(decoder.logits[0], logits, err_msg=str((policy, plan)))
            found = decoder.drafts()
            assert found.tokens == STEPS
            fed = found.looked_up.fed + found.predicted.fed
            assert not (fed and refusal(Mode(engine.program, policy, PIPELINED)))
            drafted += fed
            same_state(sequence_state(decoder.read(), bool(state.held)), state)
    assert drafted > 0 or name == "the row before"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_text_that_another_choice_goes_into(opened: Opened, plan: Drafting) -> None:
    """The host may choose other tokens than the sampler that drafts, go back, and go on."""
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    random = np.random.default_rng(8)
    host, decoder = begun(engine, policy), drafting(engine, policy, plan)
    ids = PROMPT.tolist()
    for turn in range(60):
        if turn % 9 == 8:
            kept = int(random.integers(4, len(ids)))
            host.truncate(kept - 1)
            decoder.write(token_state(host.sequence))
            del ids[kept:]
            decoder.text(ids)
        if len(ids) == CAPACITY:
            break
        logits = host.step(ids[-1])[0].copy()
        np.testing.assert_array_equal(decoder.step(ids[-1])[0], logits)
        ids.append(int(logits.argmax()) if random.random() < 0.7 else int(random.integers(18)))


def test_the_end_of_a_context_is_reached_and_no_further(opened: Opened) -> None:
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    decoder = drafting(engine, policy, PLANS["all at once"])
    token = PROMPT[-1].item()
    for _ in range(CAPACITY - len(PROMPT) + 1):
        token = decoder.next(token)
    with pytest.raises(UsageError, match="capacity is 32"):
        decoder.next(token)


def test_forced_drafts_are_right_as_often_as_is_said(opened: Opened) -> None:
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    tokens, _, _ = written(engine, policy, SamplingOptions())
    truth: I64 = np.concatenate([PROMPT, tokens])
    for wrong in (np.zeros(len(truth), bool), np.ones(len(truth), bool), np.arange(len(truth)) % 2 == 0):
        decoder = drafting(engine, policy, Drafting("always", known=(truth, wrong)))
        token = PROMPT[-1].item()
        for wanted in tokens[:-1]:
            token = decoder.next(token)
            assert token == wanted
        found = decoder.drafts()
        share = found.predicted.right / (STEPS - 2)
        assert abs(share - (1 - wrong.mean())) < 0.15
        assert found.passes < (STEPS - 1) * engine.program.depths or wrong.all()


def test_what_is_learnt_is_told(opened: Opened) -> None:
    """Costs of calls by their rows, and acceptance by depth, which a model keeps from decoder to decoder."""
    engine = opened("layers around the loop", 2)
    policy = next(policies(engine.program))
    first = drafting(engine, policy, PLANS["depth 0 with judges"])
    before = first.drafts()
    assert set(before.costs_ns) == {"prologue", "block", "epilogue"}
    for costs in before.costs_ns.values():
        assert costs[0] > 0
        assert all(a <= b for a, b in pairwise(costs))
    assert set(before.threads) <= {1, 2}
    assert len(before.threads) == len(before.costs_ns["block"])
    token = PROMPT[-1].item()
    for _ in range(STEPS):
        token = first.next(token)
    after = first.drafts()
    assert after.reads > 0
    assert after.acceptance != before.acceptance
    assert len(after.by_margin) == engine.program.depths - 1
    assert drafting(engine, policy, PLANS["depth 0"]).drafts().acceptance == after.acceptance
    first.draft(Drafting("never"))
    with pytest.raises(UsageError, match="drafts nothing"):
        first.drafts()


def test_many_short_texts(opened: Opened) -> None:
    """Random prompts, each with nothing but what the ones before have taught."""
    engine = opened("shared K/V")
    policy = next(policies(engine.program))
    random = np.random.default_rng(2)
    for number in range(40):
        options = SamplingOptions(temperature=float(number % 3) / 2, seed=number)
        host, decoder = begun(engine, policy), drafting(engine, policy, Drafting())
        decoder.choose_by(options)
        sampler, ids = Sampler(options), [*PROMPT.tolist()]
        for _ in range(int(random.integers(1, 24))):
            token = decoder.next(ids[-1])
            assert token == sampler.choose(host.step(ids[-1])[0], ids, len(ids))
            ids.append(token)
