"""Slots, rows and windows of the caches."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.engines.kv import SLACK, GrowingPairs, KVCache, rows_kept
from edgeloop.runtime.errors import UsageError


def test_slots_and_bytes(maker):
    program = maker.program()
    cache = KVCache.allocate(program, 2, 10)
    assert [cache.slot("block", 1, d) for d in range(3)] == [3, 4, 5]
    assert cache.slot("epilogue", 1, 2) == 1
    assert (cache.capacity, cache.rows, cache.slots, cache.window) == (10, 10, 3, None)
    assert cache.stages["block"][0][0].shape == (6, 2, 10, 8)
    assert cache.nbytes == 2 * 10 * program.kv_bytes_per_token


def test_depths_that_share(maker):
    program = maker.program(kv="shared")
    cache = KVCache.allocate(program, 2, 10)
    assert [cache.slot("block", 1, d) for d in range(3)] == [1, 1, 1]
    assert cache.nbytes == 2 * 10 * program.kv_bytes_per_token
    assert KVCache.allocate(maker.program(), 2, 10, slots=1).nbytes == cache.nbytes
    with pytest.raises(UsageError, match="2 KV slots a sequence, wanted 1 to 1"):
        KVCache.allocate(program, 1, 10, slots=2)
    with pytest.raises(UsageError, match="0 KV slots a sequence, wanted 1 to 3"):
        KVCache.allocate(maker.program(), 1, 10, slots=0)


def test_fewer_slots_than_depths(maker):
    """They take turns."""
    cache = KVCache.allocate(maker.program(), 2, 10, slots=2)
    assert [cache.slot("block", 1, d) for d in range(3)] == [2, 3, 2]


def test_a_window_bounds_the_rows(maker):
    program = maker.program(sliding_window=5, context_length=4096)
    cache = KVCache.allocate(program, 1, 1000)
    assert (cache.capacity, cache.rows, cache.window) == (1000, 5 + SLACK, 5)
    assert cache.nbytes == cache.rows * program.kv_bytes_per_token
    assert KVCache.allocate(program, 1, 20).rows == 20
    assert KVCache.allocate(program, 1, 2).rows == 5  # the operator wants room for the window
    assert maker.program(sliding_window=64).window is None  # as long as the context
    assert maker.program(sliding_window=63).window == 63


def test_bytes_in_use(maker):
    program = maker.program()
    cache = KVCache.allocate(program, 2, 10)
    assert cache.used_bytes(1, [1, 1, 1]) == program.kv_bytes_per_token
    assert cache.used_bytes(10, [10, 10, 10]) == cache.nbytes // 2
    left = program.kv_bytes_per_token - maker.program(kv="shared").kv_bytes_per_token  # of two depths
    assert cache.used_bytes(4, [4, 4, 1]) == 4 * program.kv_bytes_per_token - 3 * left // 2
    narrow = KVCache.allocate(program, 2, 10, slots=1)  # of the last depth
    assert narrow.used_bytes(4, [9, 9, 4]) == 4 * maker.program(kv="shared").kv_bytes_per_token
    long = KVCache.allocate(maker.program(sliding_window=5, context_length=4096), 1, 1000)
    assert long.used_bytes(1000, [1000] * 3) == program.kv_bytes_per_token * rows_kept(1000, 5 + SLACK, 5)


@pytest.mark.parametrize(("rows", "window"), [(5, 5), (6, 5), (9, 5), (12, 3)])
def test_the_most_recent_tokens_are_resident(rows, window):
    """Counted one by one: a row is added for each token; full, all that the window leaves behind goes at once."""
    kept = 0
    for tokens in range(60):
        assert rows_kept(tokens, rows, window) == kept
        assert min(tokens, window) <= kept <= rows
        kept = kept + 1 if kept < rows else window


def test_what_was_moved_out_cannot_come_back(maker, monkeypatch):
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)
    cache = KVCache.allocate(maker.program(sliding_window=5), 1, 60)
    assert cache.rows == 8
    assert cache.can_truncate(8, 0)
    assert cache.can_truncate(50, 0)
    assert not cache.can_truncate(9, 8)
    assert cache.can_truncate(12, 9)
    assert KVCache.allocate(maker.program(), 1, 60).can_truncate(60, 1)


def test_growing_pairs_keep_what_they_hold():
    """Heads move apart in the same memory; rows that were written stay, whatever the slot."""
    whole = [tuple(np.zeros((2, 3, 20, 4), np.float32) for _ in range(2)) for _ in range(2)]
    pairs, wanted = GrowingPairs(whole, step=4), np.zeros((2, 2, 2, 3, 20, 4), np.float32)
    random = np.random.default_rng(0)
    sizes = []
    for row in range(20):
        pairs.reserve(row + 1)
        for layer, pair in enumerate(pairs):
            for side, array in enumerate(pair):
                wanted[layer, side, :, :, row] = array[:, :, row] = random.standard_normal((2, 3, 4))
                np.testing.assert_array_equal(array[:, :, : row + 1], wanted[layer, side, :, :, : row + 1])
                assert all(array[slot].flags.c_contiguous for slot in range(2))
        sizes.append(pairs[0][0].shape[2])
    assert sizes == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4
    np.testing.assert_array_equal(whole[1][0], wanted[1, 0])  # grown to the whole, it is the whole


def test_a_cache_that_grows_in_longer_steps(maker):
    cache = KVCache.allocate(maker.program(context_length=4096), 1, 4000)
    for stage, pairs in cache.stages.items():
        cache.stages[stage] = GrowingPairs(pairs)
    rows = []
    for tokens in (1, 64, 65, 600, 2000, 3999, 4000, 9999):
        cache.reserve(tokens)
        rows.append({pairs[0][0].shape[2] for pairs in cache.stages.values() if pairs})
    assert rows == [{64}, {64}, {128}, {640}, {2048}, {4000}, {4000}, {4000}]


@pytest.mark.parametrize("growing", [False, True])
def test_rows_are_read_written_and_copied(maker, growing):
    """In caches of arrays, and in those that take room when rows are written."""
    program = maker.program()
    one, two = KVCache.allocate(program, 2, 300), KVCache.allocate(program, 1, 300)
    if growing:
        for cache in (one, two):
            for stage, pairs in cache.stages.items():
                cache.stages[stage] = GrowingPairs(pairs)
    shape = program.caches("block")[0]
    random = np.random.default_rng(0)
    rows = [
        tuple(random.standard_normal((2, shape.kv_heads, 5, shape.head_dim)).astype(np.float32))
        for _ in program.caches("block")
    ]
    one.write_rows("block", 4, 100, rows)
    for found, wanted in zip(one.read_rows("block", 4, 100, 5), rows, strict=True):
        np.testing.assert_array_equal(found, wanted)
    two.copy_rows("block", 1, one, 4, 101, 4)
    for found, wanted in zip(two.read_rows("block", 1, 100, 5), rows, strict=True):
        np.testing.assert_array_equal(found[0][:, 1:], wanted[0][:, 1:])
        assert not found[0][:, 0].any()
    joined = one.with_block_of(two)
    assert joined.stages["block"] is two.stages["block"]
    assert joined.stages["epilogue"] is one.stages["epilogue"]
    assert (joined.slots, joined.capacity) == (two.slots, one.capacity)


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("changes", [{}, {"kv": "shared"}, {"sliding_window": 5, "context_length": 4096}])
def test_a_sequence_is_copied(maker, monkeypatch, changes, growing):
    """Into a longer cache, as far as its slots are filled; a window's rows are those of the newest tokens."""
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)
    program = maker.program(**changes)
    one, two = KVCache.allocate(program, 2, 30), KVCache.allocate(program, 3, 50)
    random = np.random.default_rng(0)
    for pairs in one.stages.values():
        for array in (array for pair in pairs for array in pair):
            array[:] = random.standard_normal(array.shape)
    if growing:
        for stage, pairs in two.stages.items():
            two.stages[stage] = GrowingPairs(pairs, step=4)
    filled = [20, 11, 7][: one.slots]
    two.copy_sequence(2, one, 1, 20, filled)
    for (stage, slot, tokens), (_, goal, _) in zip(
        one.held(1, 20, filled), two.held(2, 20, filled), strict=True
    ):
        n = rows_kept(tokens, 8, 5) if one.window else tokens
        pairs = zip(one.read_rows(stage, slot, 0, n), two.read_rows(stage, goal, 0, n), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    assert not any(array[:2].any() for array in two.stages["epilogue"][0])


def test_what_shift_keeps_is_copied_and_not_taken_back(maker):
    one, two = (KVCache.allocate(maker.program(), 1, 10) for _ in range(2))
    assert one.can_truncate(9, 4)
    row = np.arange(4, dtype=np.float32)
    one.last_rows["block", 1] = 9, {0: row[None], 1: 2 * row[None]}
    assert [one.can_truncate(9, tokens) for tokens in (0, 4, 8, 9)] == [True, False, False, True]
    two.copy_sequence(0, one, 0, 9, [9, 9, 9])
    rows = two.read_last("block", 1, 9)
    np.testing.assert_array_equal(rows, [row, 2 * row])
    assert two.read_last("block", 0, 9) == two.read_last("block", 1, 8) == []
