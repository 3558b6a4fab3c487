"""Slots, rows and windows of the caches."""

from __future__ import annotations

import pytest

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.kv import SLACK, KVCache, resident, visible


def test_slots_and_bytes(maker):
    spec = maker.spec()
    cache = KVCache.allocate(spec, 2, 10)
    assert [cache.slot("block", 1, d) for d in range(3)] == [3, 4, 5]
    assert cache.slot("epilogue", 1, 2) == 1
    assert (cache.capacity, cache.rows, cache.slots, cache.window) == (10, 10, 3, None)
    assert cache.stages["block"][0][0].shape == (6, 2, 10, 8)
    assert cache.nbytes == 2 * 10 * spec.kv_bytes_per_token


def test_depths_that_share(maker):
    spec = maker.spec(kv="shared")
    cache = KVCache.allocate(spec, 2, 10)
    assert [cache.slot("block", 1, d) for d in range(3)] == [1, 1, 1]
    assert cache.nbytes == 2 * 10 * spec.kv_bytes_per_token
    assert KVCache.allocate(maker.spec(), 2, 10, slots=1).nbytes == cache.nbytes
    with pytest.raises(UsageError, match="2 KV slots a sequence, wanted 1 to 1"):
        KVCache.allocate(spec, 1, 10, slots=2)
    with pytest.raises(UsageError, match="0 KV slots a sequence, wanted 1 to 3"):
        KVCache.allocate(maker.spec(), 1, 10, slots=0)


def test_fewer_slots_than_depths(maker):
    cache = KVCache.allocate(maker.spec(), 2, 10, slots=2)
    assert [cache.slot("block", 1, d) for d in range(3)] == [2, 3, 3]


def test_a_window_bounds_the_rows(maker):
    spec = maker.spec(sliding_window=5, context_length=4096)
    cache = KVCache.allocate(spec, 1, 1000)
    assert (cache.capacity, cache.rows, cache.window) == (1000, 5 + SLACK, 5)
    assert cache.nbytes == cache.rows * spec.kv_bytes_per_token
    assert KVCache.allocate(spec, 1, 20).rows == 20
    assert KVCache.allocate(spec, 1, 2).rows == 5  # the operator wants room for the window
    assert visible(maker.spec(sliding_window=64)) is None  # as long as the context
    assert visible(maker.spec(sliding_window=63)) == 63


@pytest.mark.parametrize(("rows", "window"), [(5, 5), (6, 5), (9, 5), (12, 3)])
def test_the_most_recent_tokens_are_resident(rows, window):
    """Counted one by one: a row is added for each token; full, all that the window leaves behind goes at once."""
    kept = 0
    for tokens in range(60):
        assert resident(tokens, rows, window) == kept
        assert min(tokens, window) <= kept <= rows
        kept = kept + 1 if kept < rows else window


def test_what_was_moved_out_cannot_come_back(maker, monkeypatch):
    monkeypatch.setattr("edgeloop.runtime.kv.SLACK", 3)
    cache = KVCache.allocate(maker.spec(sliding_window=5), 1, 60)
    assert cache.rows == 8
    assert cache.can_truncate(8, 0)
    assert cache.can_truncate(50, 0)
    assert not cache.can_truncate(9, 8)
    assert cache.can_truncate(12, 9)
    assert KVCache.allocate(maker.spec(), 1, 60).can_truncate(60, 1)
