"""Whole tokens in one call give what the host's driver gives, in every mode that they take: bits, depths, states."""

from __future__ import annotations

import numpy as np
import pytest
from token_modes import MODELS, Opened, heads_of, policies, same_state

from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.whole_tokens import sequence_state, token_mode, token_state
from edgeloop.runtime.engines.native.cache import NativeCache
from edgeloop.runtime.engines.native.library import library
from edgeloop.runtime.errors import EngineError

PROMPT, STEPS = np.array([3, 14, 15, 9, 2]), 16
IDS = np.random.default_rng(3).integers(0, 18, STEPS).tolist()
"""Tokens that are run whatever is chosen."""


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_the_hosts(opened: Opened, name: str) -> None:
    """Logits bit by bit, depths, and what is known of the sequence after each token."""
    engine = opened(name)
    heads, left = heads_of(engine.program), set()
    for policy in policies(engine.program):
        host, other = (
            SequentialDecoder(engine, engine.new_cache(1, 32, KV_LAYOUTS[policy.kv].slots), policy, heads)
            for _ in range(2)
        )
        host.whole_tokens = False
        for each in (host, other):
            each.prompt(PROMPT)
        mode = token_mode(other.sequence)
        assert mode is not None
        decoder = engine.token_decoder(mode, other.cache, 0)
        decoder.write(token_state(other.sequence))
        for token in IDS:
            wanted = host.step(token).copy()
            np.testing.assert_array_equal(decoder.step(token), wanted)
            assert decoder.depth == host.depth, policy
            left.add(decoder.depth)
            found = sequence_state(decoder.read(), bool(host.sequence.layout.held))
            same_state(found, host.sequence.snapshot())
    assert len(left) > 1


@pytest.mark.parametrize("skipped_kv", ["exact", "propagate", "latest", "skip"])
def test_a_token_that_was_stopped_leaves_nothing(opened: Opened, skipped_kv: str) -> None:
    """Wherever it was: it can be run again, with the same bits."""
    engine = opened("layers around the loop")
    policy = choose_policy(engine.program, heads_of(engine.program), {}, "latent:0.9", skipped_kv)
    whole, stopped = (
        SequentialDecoder(engine, engine.new_cache(1, 32), policy, heads_of(engine.program)) for _ in range(2)
    )
    for each in (whole, stopped):
        each.prompt(PROMPT)
    assert isinstance(stopped.cache, NativeCache)
    session = stopped.cache.sessions["block"].pointer
    for token in IDS:
        wanted = whole.step(token).copy()
        library().el_stop(session)
        with pytest.raises(EngineError, match="engine native: stopped"):
            stopped.step(token)
        assert stopped.cached == whole.cached - 1
        np.testing.assert_array_equal(stopped.step(token), wanted)
        same_state(stopped.sequence.snapshot(), whole.sequence.snapshot())


@pytest.mark.parametrize("stage", ["block", "epilogue"])
@pytest.mark.parametrize("skipped_kv", ["exact", "propagate", "latest", "skip"])
def test_a_stage_that_was_interrupted_leaves_nothing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, skipped_kv: str, stage: str
) -> None:
    """Where the host decides between depths: Ctrl-C is heard when the engine is back, which has written rows then."""
    engine = opened("layers around the loop")
    policy = choose_policy(engine.program, heads_of(engine.program), {}, "latent:0.9", skipped_kv)
    whole, broken = (
        SequentialDecoder(engine, engine.new_cache(1, 32), policy, heads_of(engine.program)) for _ in range(2)
    )
    broken.whole_tokens = False
    for each in (whole, broken):
        each.prompt(PROMPT)
    run = getattr(engine, stage)

    def interrupted(*given: object) -> None:
        run(*given)
        raise KeyboardInterrupt

    for token in IDS:
        wanted = whole.step(token).copy()
        monkeypatch.setattr(engine, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            broken.step(token)
        monkeypatch.setattr(engine, stage, run)
        np.testing.assert_array_equal(broken.step(token), wanted)
        same_state(whole.sequence.snapshot(), broken.sequence.snapshot())
