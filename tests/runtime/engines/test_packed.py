"""Packed lanes against the same lanes with all their rows."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.errors import UsageError

DEPTH, CACHED = np.array([2, 0, 1, 2]), np.array([5, 0, 3, 9], np.int32)
TOKENS = np.array([3, 1, 0, 2], np.int32)
POSITIONS = CACHED[:, None] + np.arange(3)


def test_what_follows_from_the_tokens():
    lanes = PackedLanes(DEPTH, CACHED, TOKENS, POSITIONS)
    assert lanes.state_shape == (6, 1)
    assert lanes.row_depth.tolist() == [2, 2, 2, 0, 2, 2]
    assert lanes.kept.tolist() == [0, 1, 2, 3, 9, 10]
    assert lanes.spread.reshape(-1)[lanes.kept].tolist() == list(range(6))
    rows = np.random.default_rng(0).standard_normal((6, 1, 5)).astype(np.float32)
    np.testing.assert_array_equal(lanes.pack(lanes.pad(rows)), rows)


def test_an_empty_one_can_be_written_to():
    lanes = PackedLanes.empty(4, 3, 6)
    lanes.tokens[:] = TOKENS
    lanes.refresh()
    assert lanes.kept.tolist() == [0, 1, 2, 3, 9, 10]
    lanes.tokens[2] = 1
    with pytest.raises(UsageError, match="packed lanes of 6 rows with 7 tokens"):
        lanes.refresh()


def test_an_idle_lane_of_shared_slots_points_behind_its_tokens():
    lanes = PackedLanes(DEPTH, CACHED, np.array([1, 0, 0, 1]), POSITIONS[:, :1], shared=True)
    assert lanes.last.tolist() == [5, 0, 3, 9]
    assert PackedLanes.empty(2, 1, 1, shared=True, fresh=False).spread_new.shape == (2, 0)


def test_the_reference_computes_what_it_computes_unpacked(maker):
    backend = maker.backend(maker.program())
    state = np.random.default_rng(1).standard_normal((4, 3, 32)).astype(np.float32)
    caches = [backend.new_cache(2, 16) for _ in range(2)]
    packed = PackedLanes(DEPTH, CACHED, TOKENS, POSITIONS, first_slot=1)
    wanted = backend.block(state, Lanes(DEPTH, CACHED, TOKENS, POSITIONS, first_slot=1), caches[0])
    found = backend.block(packed.pack(state), packed, caches[1])
    np.testing.assert_array_equal(found, packed.pack(wanted))
    for ours, theirs in zip(*(c.stages["block"] for c in caches), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shared", [False, True])
def test_placing_tokens_is_writing_the_arrays_and_refreshing(shared):
    placed, written = (PackedLanes.empty(6, 1, 3, shared=shared) for _ in range(2))
    for lanes, depth, cached in (([0, 3, 5], [2, 0, 1], [7, 4, 9]), ([1, 2, 4], [0, 0, 2], [3, 0, 5])):
        for target in (placed, written):
            target.cached[:] = [1, 2, 3, 4, 5, 6] if shared else 0
        placed.place(lanes, depth, cached, [c + 1 for c in cached])
        written.tokens[:] = 0
        for lane, d, c in zip(lanes, depth, cached, strict=True):
            written.tokens[lane], written.depth[lane], written.cached[lane] = 1, d, c
            written.positions[lane, 0] = c + 1
        written.refresh()
        for name in ("tokens", "row_depth", "kept", "spread", "last", "longest", "cached"):
            where = lanes if name == "cached" else slice(None)
            np.testing.assert_array_equal(getattr(placed, name)[where], getattr(written, name)[where], name)
