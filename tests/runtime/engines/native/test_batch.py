"""A token of each of many sequences in one call gives what each decoder gives alone, in every mode: bits and depths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from token_modes import MODELS, Opened, heads_of, policies

from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.whole_tokens import token_mode, token_state
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.native.ahead import may_run_ahead
from edgeloop.runtime.engines.native.decoder import NativeDecoder
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.tokens import I64, Chooser
from edgeloop.runtime.errors import UsageError

CAPACITY, STEPS = 32, 14
SAMPLINGS = (
    SamplingOptions(),
    SamplingOptions(temperature=0.9, seed=5),
    SamplingOptions(temperature=1.4, top_k=7, top_p=0.9, seed=6),
    SamplingOptions(temperature=0.7, min_p=0.05, seed=7),
)
PROMPTS = ([3, 14, 15, 9, 2], [6, 5], [1, 1, 2, 3, 5, 8, 13], [4])


@dataclass
class Asked:
    """A ``Turn``."""

    decoder: NativeDecoder
    token: int
    chooser: Chooser = "decoder"
    text: I64 | None = None
    ends: tuple[int, ...] = ()
    room: int = 1


def decoders(engine: NativeBackend, policy: Policy) -> tuple[KVCache, list[NativeDecoder]]:
    """One for each of ``PROMPTS``, which its sequence has run, in a cache of all."""
    cache = engine.new_cache(len(PROMPTS), CAPACITY, KV_LAYOUTS[policy.kv].slots)
    found = []
    for number, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        host = SequentialDecoder(engine, cache, policy, heads_of(engine.program), cache_sequence=number)
        host.prompt(np.array(prompt))
        mode = token_mode(host.sequence)
        assert mode is not None
        found.append(engine.token_decoder(mode, cache, number))
        found[-1].write(token_state(host.sequence))
        found[-1].choose_by(sampling)
    return cache, found


def alone(decoder: NativeDecoder, token: int) -> list[tuple[int, int]]:
    """Tokens and their depths, one after the other."""
    made = []
    for _ in range(STEPS):
        token = decoder.next(token)
        made.append((token, decoder.depth))
    return made


@pytest.mark.parametrize("name", MODELS)
def test_texts_ride_beside_tokens(opened: Opened, name: str) -> None:
    """A prompt in pieces of any size, while others decode: its logits, and all tokens, are those of lone runs."""
    engine, rode = opened(name), 0
    text = np.array([2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5])
    for policy in policies(engine.program):
        if policy.kv.startswith("last") or engine.program.routing is not None:
            continue  # a slot a depth is lacking; a router sends tokens
        cache, many = decoders(engine, policy)
        lone = SequentialDecoder(engine, engine.new_cache(1, CAPACITY), policy, heads_of(engine.program))
        wanted_logits = lone.prompt(text)[0].copy()
        _, singly = decoders(engine, policy)
        wanted = [alone(decoder, 7 + i) for i, decoder in enumerate(singly)]
        host = SequentialDecoder(engine, cache, policy, heads_of(engine.program), cache_sequence=3)
        many[3].write(token_state(host.sequence))  # empty
        batch, start = engine.token_batch(cache), 0
        asked = [Asked(decoder, 7 + i) for i, decoder in enumerate(many[:3])]
        found: list[list[tuple[int, int]]] = [[] for _ in asked]
        for size in (1, 5, 2, 4):
            start, end = start + size, start + size
            last = end == len(text)
            piece = Asked(many[3], -1, "host" if last else "nobody", text[end - size : end])
            turned = batch.next([asked[0], piece, *asked[1:]])
            for i, each in enumerate((turned[0], *turned[2:])):
                found[i].append((each.token, each.depth))
                asked[i].token = each.token
            assert (turned[1].token, turned[1].depth) == (-1, engine.program.depths)
            assert (turned[1].logits is None) != last
            rode += batch.rows - batch.calls
        np.testing.assert_array_equal(turned[1].logits, wanted_logits)
        assert found == [each[:4] for each in wanted[:3]], policy
        assert many[3].read().cached == len(text)
        assert many[3].next(9) == other_next(lone, 9)
    assert rode > 0 or engine.program.routing is not None


def other_next(lone: SequentialDecoder, token: int) -> int:
    """What the last of ``SAMPLINGS`` chooses behind ``token``."""
    return Sampler(SAMPLINGS[3]).choose(lone.step(token)[0], [], lone.cached)


@pytest.mark.parametrize("name", MODELS)
def test_each_gets_what_it_gets_alone(opened: Opened, name: str) -> None:
    """They come and go: sequence i joins after 2 i tokens of the first one."""
    engine = opened(name)
    together, most = 0, 0
    for policy in policies(engine.program):
        _, singly = decoders(engine, policy)
        wanted = [alone(decoder, 7 + i) for i, decoder in enumerate(singly)]
        cache, many = decoders(engine, policy)
        batch = engine.token_batch(cache)
        asked = [Asked(decoder, 7 + i) for i, decoder in enumerate(many)]
        found: list[list[tuple[int, int]]] = [[] for _ in asked]
        for tick in range(STEPS + 2 * len(asked)):
            now = [i for i in range(len(asked)) if tick >= 2 * i and len(found[i]) < STEPS]
            if not now:
                continue
            for i, turned in zip(now, batch.next([asked[i] for i in now]), strict=True):
                assert turned.error is None
                found[i].append((turned.token, turned.depth))
                asked[i].token = turned.token
            together += batch.rows - batch.calls
            most = max(most, batch.calls)
        assert found == wanted, policy
        for one, other in zip(many, singly, strict=True):
            same = one.read(), other.read()
            assert (same[0].cached, same[0].filled) == (same[1].cached, same[1].filled)
            for ours, theirs in zip(same[0].waiting, same[1].waiting, strict=True):
                np.testing.assert_array_equal(ours.states, theirs.states)
    assert together > 0
    assert most <= 2 * engine.program.depths


@pytest.mark.parametrize("name", MODELS)
def test_calls_of_several_tokens_give_the_same(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each call stops behind the first that has come to its end; a text, or a host that chooses, has one token."""
    monkeypatch.setattr("edgeloop.runtime.engines.native.batch.burst", lambda made, ns: 4)
    engine, several = opened(name), 0
    for policy in policies(engine.program):
        _, singly = decoders(engine, policy)
        wanted = [alone(decoder, 7 + i) for i, decoder in enumerate(singly)]
        cache, many = decoders(engine, policy)
        batch = engine.token_batch(cache)
        end = wanted[1][5][0]
        asked = [
            Asked(decoder, 7 + i, room=STEPS, ends=(end,) if i == 1 else ()) for i, decoder in enumerate(many)
        ]
        found: list[list[tuple[int, int]]] = [[] for _ in asked]
        while any(each.room for each in asked):
            now = [i for i in range(len(asked)) if asked[i].room]
            for i, turned in zip(now, batch.next([asked[i] for i in now], several=True), strict=True):
                made = [*turned.earlier, (turned.token, turned.depth)]
                assert turned.error is None
                assert len(made) == batch.ticks
                assert not (i == 1 and any(token == end for token, _ in made[:-1]))
                found[i] += made
                asked[i].token, asked[i].room = turned.token, asked[i].room - len(made)
            several = max(several, batch.ticks)
        assert found == wanted, policy
        for one, other in zip(many, singly, strict=True):
            assert one.read().cached == other.read().cached
        asked = [Asked(many[0], 1, room=9), Asked(many[1], 1, "host", room=9)]
        assert [len(each.earlier) for each in batch.next(asked, several=True)] == [0, 0]
    assert (several > 1) == may_run_ahead(engine.program)


def test_what_goes_wrong_later_in_a_call_is_said_by_the_next_one(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context that is full behind some tokens ends the call; these count, and those of others too."""
    monkeypatch.setattr("edgeloop.runtime.engines.native.batch.burst", lambda made, ns: 7)
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    cache, many = decoders(engine, policy)
    batch = engine.token_batch(cache)
    asked = [Asked(many[0], 5, room=99), Asked(many[3], 5, room=99)]
    while (found := batch.next(asked, several=True))[0].error is None:
        for each, turned in zip(asked, found, strict=True):
            each.token = turned.token
    assert "and the capacity is 32" in str(found[0].error)
    assert found[0].earlier == ()
    assert found[1].error is None
    assert many[0].read().cached == CAPACITY


def test_the_host_chooses_from_the_logits_of_those_it_wants(opened: Opened) -> None:
    engine = opened("an exit gate")
    policy = next(p for p in policies(engine.program) if p.exit == "latent:0.9")
    _, singly = decoders(engine, policy)
    wanted = [decoder.step(5)[0].copy() for decoder in singly]
    cache, many = decoders(engine, policy)
    turned = engine.token_batch(cache).next(
        [Asked(decoder, 5, chooser="host" if i % 2 else "decoder") for i, decoder in enumerate(many)]
    )
    for i, each in enumerate(turned):
        assert (each.logits is None) == (i % 2 == 0)
        if each.logits is None:
            assert each.token >= 0
        else:
            np.testing.assert_array_equal(each.logits, wanted[i])
            assert each.token == -1


def test_what_is_wrong_with_one_is_said_of_that_one(opened: Opened) -> None:
    """The others get theirs, and its sequence is as before."""
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    _, singly = decoders(engine, policy)
    wanted = [decoder.next(5) for decoder in singly]
    cache, many = decoders(engine, policy)
    batch = engine.token_batch(cache)
    vocabulary = engine.program.vocab_size
    turned = batch.next([Asked(d, vocabulary if i == 1 else 5) for i, d in enumerate(many)])
    assert isinstance(turned[1].error, UsageError)
    assert f"token id {vocabulary}, wanted 0 to {vocabulary - 1}" in str(turned[1].error)
    assert [each.token for i, each in enumerate(turned) if i != 1] == [wanted[0], *wanted[2:]]
    assert batch.next([Asked(many[1], 5)])[0].token == wanted[1]
    token = 5
    while (found := batch.next([Asked(many[0], token), Asked(many[3], 5)]))[0].error is None:
        token = found[0].token
    assert "and the capacity is 32" in str(found[0].error)
    assert found[1].error is None
    assert many[0].read().cached == CAPACITY


def test_logits_that_are_not_numbers_choose_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    cache, many = decoders(engine, policy)
    for stage, slot, tokens in cache.held(1, 2, [2] * engine.program.depths):
        rows = cache.read_rows(stage, slot, 0, tokens)
        cache.write_rows(stage, slot, 0, [(k * np.nan, v * np.nan) for k, v in rows])
    turned = engine.token_batch(cache).next([Asked(decoder, 5) for decoder in many])
    assert turned[1].error is None
    assert turned[1].token == -1
    assert turned[1].logits is not None
    assert np.isnan(turned[1].logits).any()
    assert all(each.token >= 0 and each.logits is None for i, each in enumerate(turned) if i != 1)


def test_a_batch_is_of_one_session_and_of_different_sequences(opened: Opened) -> None:
    engine = opened("layers around the loop")
    policy = next(policies(engine.program))
    cache, many = decoders(engine, policy)
    _, others = decoders(engine, policy)
    batch = engine.token_batch(cache)
    with pytest.raises(UsageError, match="two turns have sequence 1, wanted one for each"):
        batch.next([Asked(many[0], 1), Asked(many[1], 1), Asked(many[1], 1)])
    with pytest.raises(UsageError, match="the decoder of turn 1 is of another session"):
        batch.next([Asked(many[0], 1), Asked(others[1], 1)])
    turned = batch.next([Asked(many[0], 1, text=np.arange(40)), Asked(many[1], 1)])
    assert "40 new ones, and the capacity is 32" in str(turned[0].error)
    assert turned[1].error is None
    with pytest.raises(UsageError, match="0 turns, wanted 1 to"):
        batch.next([])
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        batch.next([Asked(many[0], 1)])
