"""Rows and slots: which calls a layout makes of a chunk, and what it forgets."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.decode.kv_layout import LastDepth, PerDepth, SharedSlot


def test_calls_are_runs_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeloop.runtime.decode.kv_layout.RIDERS", 1)
    rows = np.array([1, 2, 4, 7, 8, 12])
    layout = SharedSlot(2)
    calls = [
        (call.rows, call.kept.tolist(), rows[call.part].tolist()) for call in layout.row_calls(1, rows, 20)
    ]
    assert calls == [
        (slice(1, 5), [0, 1, 3], [1, 2, 4]),
        (slice(7, 9), [0, 1], [7, 8]),
        (slice(12, 13), [0], [12]),
    ]
    assert [call.rows for call in layout.row_calls(0, rows[:0], 20)] == [slice(0, 20)]
    assert list(layout.row_calls(1, rows[:0], 20)) == []


def test_a_slot_a_depth_takes_the_chosen_rows_only() -> None:
    (call,) = PerDepth(2).row_calls(1, np.array([0, 3]), 9)
    assert call.rows.tolist() == [0, 3]
    assert list(PerDepth(2).row_calls(0, np.array([], np.int64), 9)) == []


@pytest.mark.parametrize("kind", [PerDepth, SharedSlot, LastDepth])
def test_rows_of_neighbours(kind: type[PerDepth]) -> None:
    layout = kind(2)
    for position in (0, 3):
        for depth in (0, 1):
            call = layout.block(depth, np.zeros((3, 4), np.float32), np.arange(position, position + 3))
            assert call.cached == position
            layout.wrote(call)
    layout.finished(6)
    assert layout.rows_before(4) == [4, 4]
    layout.truncate(4)
    assert layout.filled == [4, 4]


def test_rows_with_gaps() -> None:
    layout = PerDepth(2, gaps=True)
    for depth, positions in ((0, [0, 1, 2, 3]), (1, [1, 3]), (0, [4]), (1, [4])):
        call = layout.block(depth, np.zeros((len(positions), 4), np.float32), np.array(positions))
        layout.wrote(call)
    assert call.cached == 2
    assert (layout.filled, layout.rows_before(3), layout.rows_before(4)) == ([5, 3], [3, 1], [4, 2])
    layout.truncate(4)
    assert (layout.filled, layout.held) == ([4, 2], [[0, 1, 2, 3], [1, 3]])


def test_deeper_tokens_of_a_shared_slot_do_not_shorten_it() -> None:
    layout = SharedSlot(3)
    layout.wrote(layout.block(0, np.zeros((1, 4), np.float32), np.array([7])))
    layout.wrote(layout.block(1, np.zeros((1, 4), np.float32), np.array([5])))
    assert layout.filled == [8, 6, 0]
    layout.finished(6)
    assert layout.filled == [6, 6, 6]
