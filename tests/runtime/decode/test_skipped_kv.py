"""What is asked for K and V of the depths that a token skipped, and when."""

from __future__ import annotations

import numpy as np
import pytest
from stage_calls import asked, block

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.exits import ExitRule
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequence import TokenSequence

IDS = np.arange(2)
DEEP = ExitRule("depth", 3)


def sequence(
    maker, rule: str, skipped_kv: str, segments: tuple[Segment, ...] = (Segment(layers=1, repeats=3),)
):
    """Behind a prompt of two tokens."""
    program = maker.program(segments)
    made = TokenSequence(program, choose_policy(program, {}, {}, rule, skipped_kv), {}, lambda: 4)
    asked(made, made.prompt(IDS))
    return made


def test_exact_runs_what_waits_with_the_next_deep_token(maker):
    found = sequence(maker, "depth:1", "exact")
    for _ in range(2):
        asked(found, found.step(0))
    assert found.filled == [4, 2, 2]
    found.rule = DEEP
    assert asked(found, found.step(0)) == [
        ("prologue", 0, 4, 4, 1, 1),
        block(0, 4, 4),
        block(1, 2, 2, 3),
        block(2, 2, 2, 3),
        ("epilogue", 2, 4, 4, 1, 1),
    ]


def test_propagate_fills_in_before_the_next_deep_token(maker):
    found = sequence(maker, "depth:1", "propagate")
    for _ in range(2):
        asked(found, found.step(0))
    found.rule = DEEP
    assert asked(found, found.step(0))[2:-1] == [
        ("fill", 1, 2, 2, 2, 1),
        block(1, 4, 4),
        ("fill", 2, 2, 2, 2, 1),
        block(2, 4, 4),
    ]


def test_propagate_fills_in_order_where_a_draft_left_first(maker):
    """The draft behind the token at 2 leaves after its first depth, while that one goes on to its third."""
    found = sequence(maker, "depth:1", "propagate", (Segment(layers=1, repeats=4),))
    found.rule = ExitRule("depth", 3)
    older = found.step(0, 2)
    assert next(older).stage == "prologue"
    found.rule = ExitRule("depth", 1)
    draft = found.step(0, 3)
    assert next(draft).stage == "prologue"
    answer = {depth: np.full((1, 32), depth, np.float32) for depth in range(4)}
    older.send(answer[0])
    older.send(answer[0])
    draft.send(answer[0])
    assert draft.send(answer[1]).stage == "epilogue"
    older.send(answer[1])
    assert older.send(answer[2]).stage == "epilogue"
    fills = [call for call in found.skipped.catch_up() if call.stage == "fill"]
    assert [(call.depth, call.positions.tolist()) for call in fills] == [(1, [3]), (2, [3]), (3, [2, 3])]
    np.testing.assert_array_equal(fills[-1].rows[:, 0], [2, 1])


def test_latest_copies_the_rows_of_a_token_that_leaves(maker):
    found = sequence(maker, "depth:2", "latest")
    assert ("copy", 1, 2, 2, 1, 1) in asked(found, found.step(0))
    assert found.filled == [3, 3, 3]


def test_skip_leaves_gaps(maker):
    found = sequence(maker, "depth:1", "skip")
    asked(found, found.step(0))
    found.rule = DEEP
    assert asked(found, found.step(0))[1:4] == [block(0, 3, 3), block(1, 2, 3), block(2, 2, 3)]
    assert [held.tolist() for held in found.snapshot().held] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3]]
    assert found.layout.rows_before(3) == [3, 2, 2]


def test_what_waits_runs_by_itself_when_it_is_too_much(maker, monkeypatch):
    monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", 3)
    found = sequence(maker, "depth:1", "exact")
    for _ in range(3):
        assert len(asked(found, found.step(0))) == 3
    assert asked(found, found.step(0))[:3] == [
        block(1, 2, 2, 3),
        block(2, 2, 2, 3),
        ("prologue", 0, 5, 5, 1, 1),
    ]


@pytest.mark.parametrize("skipped_kv", ["exact", "propagate"])
def test_a_token_that_is_taken_back_leaves_what_it_took_along(maker, skipped_kv):
    """Cancelled while its second block call, or the fill before it, is still to be run."""
    found = sequence(maker, "depth:1", skipped_kv)
    for _ in range(2):
        asked(found, found.step(0))
    before = found.snapshot()
    found.rule = DEEP
    calls = found.step(0, 4)
    next(calls)
    calls.send(np.zeros((1, 32), np.float32))
    pending = calls.send(np.zeros((1, 32), np.float32))
    assert (pending.stage, pending.depth) == ("block" if skipped_kv == "exact" else "fill", 1)
    calls.close()
    found.take_back(4, [pending])
    after = found.snapshot()
    assert (after.cached, after.filled) == (before.cached, before.filled)
    for was, now in zip(before.waiting, after.waiting, strict=True):
        rows = [
            np.concatenate([w.states for w in waiting]) if waiting else np.zeros((0, 32))
            for waiting in (was, now)
        ]
        np.testing.assert_array_equal(*rows)


def test_an_epilogue_sees_tokens_again_that_were_brought_to_the_last_depth(maker, monkeypatch):
    layered = (Segment(layers=1), Segment(layers=1, repeats=3), Segment(layers=1))
    found = sequence(maker, "depth:1", "exact", layered)
    asked(found, found.step(0))
    found.rule = DEEP
    assert asked(found, found.step(0))[-1] == ("epilogue", 2, 2, 2, 2, 1)
    monkeypatch.setattr("edgeloop.runtime.decode.skipped_kv.LIMIT", 1)
    found.rule = ExitRule("depth", 1)
    asked(found, found.step(0))
    assert asked(found, found.step(0))[:3] == [block(1, 4, 4), block(2, 4, 4), ("epilogue", 2, 4, 4, 1, 0)]
