"""What a sequence asks for, call by call; and that its state is all that a context has beside the rows of its cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from stage_calls import asked, block

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.exits import ExitRule
from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequence import TokenSequence
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.program import Program, Routing

HEADLESS = (Segment(layers=1, repeats=3),)
LAYERED = (Segment(layers=1), Segment(layers=1, repeats=3), Segment(layers=1))
ROUTINGS = {
    "expert": Routing(kind="expert", squash="sigmoid", alpha=0.7, capacity=(1.0, 0.5, 0.5)),
    "token": Routing(kind="token", squash="softmax", alpha=0.9),
}
EXITS = {
    "exact": ({}, {"exit": "depth:1", "skipped_kv": "exact"}),
    "propagate": ({}, {"exit": "depth:1", "skipped_kv": "propagate"}),
    "latest": ({}, {"exit": "depth:1", "skipped_kv": "latest"}),
    "skip": ({}, {"exit": "depth:1", "skipped_kv": "skip"}),
    "shared": ({"kv": "shared"}, {"exit": "depth:1"}),
    "last": ({}, {"exit": "depth:1", "kv": "last"}),
    "last-2": ({}, {"exit": "depth:1", "kv": "last-2"}),
    "exact, window": ({"sliding_window": 6}, {"exit": "depth:1", "skipped_kv": "exact"}),
    "skip, window": ({"sliding_window": 6}, {"exit": "depth:1", "skipped_kv": "skip"}),
}
OTHERS = {
    "never": ({}, {}),
    "expert": ({"routing": "expert"}, {}),
    "token": ({"routing": "token"}, {}),
    "expert, shared": ({"routing": "expert", "kv": "shared"}, {}),
    "token, shared": ({"routing": "token", "kv": "shared"}, {}),
}
CASES = EXITS | OTHERS
LEAVE = (1, 3, 2, 1, 1, 2, 3, 1, 1, 1, 2)
"""Depths that tokens run by position, where an exit rule lets them go: over and over."""
IDS = np.random.default_rng(4).integers(0, 60, 20)
PROMPT = 5
ROUNDING = 2e-5


def model(maker, segments: tuple[Segment, ...], changes: dict[str, object]) -> tuple[Program, dict]:
    """A tiny program, and the heads of its router."""
    options = dict(changes)
    routing = options.pop("routing", None)
    program = maker.program(segments, **options)
    if routing is None:
        return program, {}
    random = np.random.default_rng(6)
    heads = {"router.weight": random.standard_normal((3, 32)).astype(np.float32) / 4}
    if routing == "token":
        heads["router.bias"] = np.zeros(3, np.float32)
    return msgspec.structs.replace(program, routing=ROUTINGS[routing]), heads


Decoders = Callable[[], SequentialDecoder]


def decoders(maker, name: str, segments: tuple[Segment, ...] = HEADLESS) -> Decoders:
    """Makes decoders of one model under the policy of a case, each with a cache of its own."""
    changes, options = CASES[name]
    program, heads = model(maker, segments, changes)
    backend = ReferenceBackend(program, maker.tensors(program), 0)
    policy = choose_policy(program, heads, {}, **options)

    def make() -> SequentialDecoder:
        slots = KV_LAYOUTS[policy.kv].slots
        return SequentialDecoder(backend, backend.new_cache(1, 24, slots), policy, heads, chunk=4)

    return make


def steps(decoder: SequentialDecoder, ids: np.ndarray) -> np.ndarray:
    """Logits of ids [S], decoded one by one; where a rule lets tokens go, as ``LEAVE`` says."""
    found = []
    for token in ids.tolist():
        if decoder.sequence.rule.token_by_token:
            decoder.sequence.rule = ExitRule("depth", LEAVE[decoder.cached % len(LEAVE)])
        found.append(decoder.step(token).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("segments", [HEADLESS, LAYERED], ids=["no epilogue", "epilogue"])
@pytest.mark.parametrize("name", CASES)
def test_a_restored_sequence_goes_on_as_the_first_does(maker, name, segments):
    make = decoders(maker, name, segments)
    first = make()
    first.prompt(IDS[:PROMPT])
    for cut in range(PROMPT, len(IDS) - 1):
        other = make()
        state = first.sequence.snapshot()
        other.cache.copy_sequence(0, first.cache, 0, state.cached, state.filled)
        other.sequence.restore(state)
        np.testing.assert_array_equal(steps(first, IDS[cut : cut + 1]), steps(other, IDS[cut : cut + 1]))
        assert (first.cached, first.filled, first.depth) == (other.cached, other.filled, other.depth)
        other.truncate(0)  # and neither's state is the other's
        other.prompt(IDS[:2])
    assert first.cached == len(IDS) - 1


@pytest.mark.parametrize("name", CASES)
def test_a_truncated_sequence_goes_on_as_if_the_rest_had_never_been(maker, name):
    make = decoders(maker, name)
    whole = make()
    wanted = [whole.prompt(IDS[:PROMPT]).copy(), steps(whole, IDS[PROMPT:])]
    ran = 0
    for tokens in range(1, len(IDS)):
        decoder = make()
        decoder.prompt(IDS[:PROMPT])
        steps(decoder, IDS[PROMPT:])
        if ("window" in name and tokens < len(IDS) - 1) or ("last" in name and tokens < PROMPT):
            continue  # what a window has lost is the next test's; a prompt's rows of other depths are gone for good
        decoder.truncate(tokens)
        assert decoder.cached == tokens
        if tokens < PROMPT:
            found = decoder.prompt(IDS[tokens:PROMPT])
            np.testing.assert_allclose(found, wanted[0], atol=ROUNDING)
        found = steps(decoder, IDS[max(tokens, PROMPT) :])
        np.testing.assert_allclose(found, wanted[1][max(tokens - PROMPT, 0) :], atol=ROUNDING)
        assert decoder.filled == whole.filled
        ran += 1
    assert ran == {
        "exact, window": 1,
        "skip, window": 1,
        **dict.fromkeys(("last", "last-2"), len(IDS) - PROMPT),
    }.get(name, len(IDS) - 1)


def test_what_a_window_has_moved_past_does_not_come_back(maker):
    program = maker.program(HEADLESS, sliding_window=6, context_length=512)
    backend = maker.backend(program)
    decoder = SequentialDecoder(backend, backend.new_cache(1, 300))
    decoder.prompt(np.zeros(200, np.int64))
    with pytest.raises(
        UsageError, match="the cache no longer has what it had after 20 tokens: a sliding window"
    ):
        decoder.truncate(20)
    with pytest.raises(UsageError, match="cannot truncate 200 cached tokens to -1"):
        decoder.truncate(-1)
    assert decoder.cached == 200
    decoder.truncate(0)


@pytest.mark.parametrize("segments", [HEADLESS, LAYERED], ids=["no epilogue", "epilogue"])
@pytest.mark.parametrize("name", EXITS)
def test_a_text_behind_tokens_that_left_is_run_at_full_depth(maker, name, segments):
    """As if each of its tokens were decoded, and none let go."""
    chunks, singly = (decoders(maker, name, segments)() for _ in range(2))
    for decoder in (chunks, singly):
        decoder.prompt(IDS[:PROMPT])
        steps(decoder, IDS[PROMPT:12])
    if "last" in name:
        assert chunks.cache.slots == KV_LAYOUTS[name].slots
        return  # there a prompt's tokens read rows of every depth, which decoded ones do not
    singly.sequence.rule = ExitRule("depth", 3)
    wanted = np.concatenate([singly.step(token).copy() for token in IDS[12:].tolist()])
    np.testing.assert_allclose(chunks.prompt(IDS[12:], "all"), wanted, atol=ROUNDING)
    assert chunks.filled == singly.filled


def test_exact_context_is_that_of_full_depth(maker):
    left, full = (decoders(maker, name)() for name in ("exact", "never"))
    wanted = full.prompt(IDS, "all").copy()
    left.prompt(IDS[:PROMPT])
    steps(left, IDS[PROMPT:15])
    assert left.filled[2] < 15
    np.testing.assert_allclose(left.prompt(IDS[15:], "all"), wanted[15:], atol=ROUNDING)


def sequence(maker, segments: tuple[Segment, ...] = HEADLESS, policy: Policy | None = None, **options: str):
    program = maker.program(segments)
    return TokenSequence(program, policy or choose_policy(program, {}, {}, **options), {}, lambda: 4)


def test_the_calls_of_a_text_and_of_a_token(maker):
    found = sequence(maker)
    assert asked(found, found.prompt(IDS[:6])) == [
        ("prologue", 0, 0, 0, 4, 1),
        *[block(depth, 0, 0, 4) for depth in range(3)],
        ("prologue", 0, 4, 4, 2, 1),
        *[block(depth, 4, 4, 2) for depth in range(3)],
        ("epilogue", 2, 4, 4, 2, 1),
    ]
    assert asked(found, found.step(3)) == [
        ("prologue", 0, 6, 6, 1, 1),
        *[block(depth, 6, 6) for depth in range(3)],
        ("epilogue", 2, 6, 6, 1, 1),
    ]
    assert [call[-1] for call in asked(found, found.prompt(IDS[:6], "all")) if call[0] == "epilogue"] == [
        4,
        2,
    ]
    assert (found.cached, found.filled) == (13, [13, 13, 13])


def test_an_epilogue_is_run_where_nothing_is_read(maker):
    found = sequence(maker, LAYERED)
    reads = [call[-1] for call in asked(found, found.prompt(IDS[:6])) if call[0] == "epilogue"]
    assert reads == [0, 1]


def test_all_stages_in_one_call_where_the_driver_takes_it(maker):
    found = sequence(maker)
    found.whole = True
    assert asked(found, found.prompt(IDS[:6])) == [("whole", 0, 0, 0, 4, 0), ("whole", 0, 4, 4, 2, 1)]
    call = found.whole_step(1)
    assert call is not None
    assert (call.stage, call.cached, call.rows.tolist(), call.positions.tolist()) == ("whole", 6, [1], [6])
    found.ran_whole(call)
    assert (found.cached, found.filled) == (7, [7, 7, 7])


def test_rows_that_differ_from_depth_to_depth_are_asked_for_one_by_one(maker):
    found = sequence(maker, exit="depth:1", skipped_kv="skip")
    found.whole = True
    assert asked(found, found.prompt(IDS[:3])) == [("whole", 0, 0, 0, 3, 1)]
    assert found.whole_step(0) is None  # it may leave
    asked(found, found.step(0))
    assert asked(found, found.prompt(IDS[:2]))[1:4] == [
        block(0, 4, 4, 2),
        block(1, 3, 4, 2),
        block(2, 3, 4, 2),
    ]
    assert [held.tolist() for held in found.snapshot().held][1:] == [[0, 1, 2, 4, 5]] * 2


def test_the_state_of_another_model_is_refused(maker):
    found, other = sequence(maker), sequence(maker, (Segment(layers=1, repeats=2),))
    with pytest.raises(UsageError, match="the state of a sequence of 2 depths, wanted 3"):
        found.restore(other.snapshot())
    with pytest.raises(UsageError, match="the state of a sequence with gaps"):
        found.restore(replace(found.snapshot(), held=(np.zeros(0, np.int64),) * 3))
