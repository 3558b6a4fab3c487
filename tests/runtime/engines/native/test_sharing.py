"""Slots of the lane engine that share memory: what each holds is its own, whoever writes; and what it saves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lanes_files import stored
from programs import HEADS, VOCAB, windowed

from edgeloop.runtime.context.context import copy_rows
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.native.cache import NativeCache
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Kv, Stage
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.program import Program

TOKENS, BLOCK = 320, 16
NUMBERS = 2 * HEADS.kv_heads * HEADS.head_dim * BLOCK
BLOCK_BYTES = {
    Kv.F32: 4 * NUMBERS,
    Kv.F16: 2 * NUMBERS,
    Kv.I8: 2 * HEADS.kv_heads * (16 * BLOCK + 4 * BLOCK),
    Kv.I4: 2 * HEADS.kv_heads * (16 * BLOCK + 2 * 2 * BLOCK),
}
"""Of a layer; in 8 bits a head is filled up to 16 dims, and a token of it has a scale; in 4 up to 32, and has two."""
IDS = np.random.default_rng(1).integers(0, VOCAB, TOKENS)


@pytest.fixture
def engine(lane_engine: Path, tmp_path: Path) -> Iterator[NativeBackend]:
    yield from opened(tmp_path, windowed([None, None], TOKENS))


@pytest.fixture(params=[32, 16, 8, 4])
def any_bits(request: pytest.FixtureRequest, lane_engine: Path, tmp_path: Path) -> Iterator[NativeBackend]:
    yield from opened(tmp_path, windowed([None, None], TOKENS), request.param)


@pytest.fixture
def narrow(lane_engine: Path, tmp_path: Path) -> Iterator[NativeBackend]:
    yield from opened(tmp_path, windowed([5, 40], TOKENS))


def opened(folder: Path, program: Program, kv_bits: int = 32) -> Iterator[NativeBackend]:
    write_lanes(folder / NAME, program, *stored(program, "none"))
    found = NativeBackend(program, folder / NAME, threads=1, kv_bits=kv_bits)
    yield found
    found.close()


def test_rows_that_are_copied_and_written_by_lot(any_bits: NativeBackend) -> None:
    """Copies of any rows between slots and sessions, against arrays that share nothing."""
    random, capacity, slots = np.random.default_rng(2), 100, 6
    caches = [any_bits.new_cache(2, capacity), any_bits.new_cache(2, capacity)]
    sessions = [cache.sessions["block"] for cache in caches]
    width = sessions[0].rows("block", 1).itemsize
    twin = np.zeros((2, slots, capacity, width), np.uint8)
    written = np.zeros((2, slots, capacity), bool)
    for _ in range(400):
        s, t = random.integers(2, size=2)
        slot, other = (int(x) for x in random.integers(slots, size=2))
        first, to = (int(x) for x in random.integers(0, capacity, 2))
        if random.integers(2):
            first, to = first // BLOCK * BLOCK, to // BLOCK * BLOCK
        count = int(random.integers(1, capacity - max(first, to) + 1))
        match random.integers(4):
            case 0:
                rows = random.integers(256, size=(count, width), dtype=np.uint8)
                sessions[s]("el_write_rows", Stage.BLOCK, slot, to, count, rows.ctypes.data)
                twin[s, slot, to : to + count], written[s, slot, to : to + count] = rows, True
            case 1:
                sessions[s]("el_trim", Stage.BLOCK, slot, to)
                written[s, slot, to:] = False
            case _:
                if (s, slot) == (t, other) and to < first + count and first < to + count:
                    continue
                where = Stage.BLOCK, slot, to, sessions[t].pointer, other, first, count
                sessions[s]("el_copy", *where)
                for array in (twin, written):
                    array[s, slot, to : to + count] = array[t, other, first : first + count]
        for each, session in enumerate(sessions):
            for number in range(slots):
                found, held = np.zeros((capacity, width), np.uint8), written[each, number]
                session("el_read_rows", Stage.BLOCK, number, 0, capacity, found.ctypes.data)
                np.testing.assert_array_equal(found[held], twin[each, number][held])


def test_a_fork_takes_no_memory_until_it_is_written_to(any_bits: NativeBackend) -> None:
    """Nor then more than the blocks that are written; and both have the bits of a sequence that was alone."""
    alone, first = decoder(any_bits), decoder(any_bits)
    wanted = alone.prompt(IDS[:70], rows="all")
    assert wanted is not None
    wanted = wanted.copy()
    first.prompt(IDS[:50])
    before = first.cache.nbytes
    assert before == first.cache.bytes_of(50)
    second = fork(any_bits, first)
    caches = [each.cache for each in (first, second)]
    assert all(isinstance(cache, NativeCache) for cache in caches)
    assert [cache.nbytes for cache in caches] == [before, before]
    assert [cache.shared_bytes for cache in caches] == [before, before]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(second.prompt(IDS[50:60], rows="all"), wanted[50:60])
    slots = any_bits.program.kv_slots * 2  # of two layers
    own = second.cache.nbytes - second.cache.shared_bytes  # type: ignore[attr-defined]
    assert own == slots * BLOCK_BYTES[first.cache.sessions["block"].kv]  # type: ignore[attr-defined]
    second.prompt(IDS[60:70] * 0)  # something else; the first goes on as it would have
    for token in range(50, 70):
        np.testing.assert_array_equal(first.step(int(IDS[token])), wanted[token : token + 1])
    assert first.cache.nbytes == alone.cache.nbytes
    first.cache.sessions["block"].close()  # type: ignore[attr-defined]
    assert second.cache.shared_bytes == 0  # type: ignore[attr-defined]


def test_a_fork_behind_a_window(narrow: NativeBackend) -> None:
    """It goes on with the same bits, has what is still there, and knows what is not."""
    alone, first = decoder(narrow), decoder(narrow)
    wanted = alone.prompt(IDS, rows="all")
    assert wanted is not None
    first.prompt(IDS[:250])
    first.prompt(IDS[250:260])
    second = fork(narrow, first)
    assert second.cache.nbytes == first.cache.nbytes == second.cache.shared_bytes  # type: ignore[attr-defined]
    for each in (second, first):
        np.testing.assert_array_equal(each.prompt(IDS[260:], rows="all"), wanted[260:])
    assert second.cache.shared_bytes < second.cache.nbytes  # type: ignore[attr-defined]
    session, rows = second.cache.sessions["block"], np.zeros((1, 99), np.float32)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="sliding window has moved past token 20"):
        session("el_write_rows", Stage.BLOCK, 0, 20, 1, rows.ctypes.data)


def test_forks_of_one_sequence_in_several_threads(engine: NativeBackend) -> None:
    """Each goes on elsewhere, as if it were alone."""
    first = decoder(engine)
    first.prompt(IDS[:40])
    forks = [fork(engine, first) for _ in range(4)]
    wanted = []
    for start in range(4):
        alone = decoder(engine)
        alone.prompt(IDS[:40])
        wanted.append(alone.prompt(IDS[40 + start : 90 + start], rows="all").copy())  # type: ignore[union-attr]
    found: dict[int, list[np.ndarray]] = {start: [] for start in range(4)}

    def go_on(start: int) -> None:
        for token in IDS[40 + start : 90 + start]:
            found[start].append(forks[start].step(int(token)).copy())

    threads = [threading.Thread(target=go_on, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in range(4):
        np.testing.assert_array_equal(np.concatenate(found[start]), wanted[start])


def test_a_token_that_skips_depths_costs_no_memory(engine: NativeBackend) -> None:
    """Rows that a deeper depth is given are shared within a session, and counted once."""
    loop = decoder(engine)
    loop.prompt(IDS[:64])
    before = loop.cache.nbytes
    loop.cache.copy_rows("block", 2, loop.cache, 1, 0, 64)
    assert loop.cache.nbytes == before * 2 // 3
    assert loop.cache.shared_bytes == 0  # type: ignore[attr-defined]


def decoder(engine: NativeBackend) -> SequentialDecoder:
    return SequentialDecoder(engine, engine.new_cache(1, TOKENS))


def fork(engine: NativeBackend, first: SequentialDecoder) -> SequentialDecoder:
    made = decoder(engine)
    copy_rows(first, made)
    return made
