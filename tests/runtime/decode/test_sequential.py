"""Chunks, hooks and limits of the driver for one sequence alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.errors import ContextError, UsageError

ROUNDING = 2e-5  # float32 sums over another number of rows: 1.24e-5 was seen on one machine
IDS = np.random.default_rng(2).integers(0, 60, 20)
HEADLESS = (Segment(layers=2, repeats=3),)  # nothing after the loop but norm and head


@pytest.fixture(scope="module", params=[None, HEADLESS], ids=["epilogue", "no epilogue"])
def backend(request, maker):
    return maker.backend(maker.program() if request.param is None else maker.program(request.param))


def make_loop(backend, **options):
    return SequentialDecoder(backend, backend.new_cache(2, 24), **options)


def test_rows_and_chunks(backend):
    whole = make_loop(backend).prompt(IDS, "all").copy()
    assert whole.shape == (20, 60)
    for chunk in (1, 3, 20):
        np.testing.assert_allclose(make_loop(backend, chunk=chunk).prompt(IDS, "all"), whole, atol=ROUNDING)
        np.testing.assert_allclose(make_loop(backend, chunk=chunk).prompt(IDS), whole[-1:], atol=1e-5)


def test_without_rows_the_caches_are_filled_all_the_same(backend):
    whole = make_loop(backend).prompt(IDS, "all").copy()
    loop = make_loop(backend, chunk=8)
    assert loop.prompt(IDS[:19], None).shape == (0, 60)
    np.testing.assert_allclose(loop.prompt(IDS[19:]), whole[-1:], atol=1e-5)


def test_truncate_and_sequences(backend):
    cache = backend.new_cache(2, 24)
    first, second = (SequentialDecoder(backend, cache, cache_sequence=i) for i in range(2))
    wanted = first.prompt(IDS).copy()
    second.prompt(IDS[::-1])
    first.truncate(5)
    assert first.cached == 5
    np.testing.assert_allclose(first.prompt(IDS[5:]), wanted, atol=1e-5)
    with pytest.raises(UsageError, match="cannot truncate 20 cached tokens to 21"):
        first.truncate(21)


def test_observe_sees_every_depth_of_every_chunk(backend):
    seen = []
    make_loop(backend, chunk=15, observe=lambda d, x: seen.append((d, x.shape))).prompt(IDS)
    assert seen == [(d, (1, n, 32)) for n in (15, 5) for d in range(3)]


def test_the_context_is_a_limit(backend):
    loop = make_loop(backend)
    loop.prompt(IDS)
    with pytest.raises(ContextError, match="20 cached and 5 new tokens do not fit a context of 24"):
        loop.prompt(IDS[:5])
    assert loop.cached == 20
    loop.prompt(IDS[:4])


def test_bad_ids(backend):
    for ids in (np.zeros(0, np.int64), np.zeros((1, 2), np.int64)):
        with pytest.raises(UsageError, match="wanted"):
            make_loop(backend).prompt(ids)


def test_decoding_keeps_its_lanes(backend, monkeypatch):
    """Engines keep bindings by shape and slot; the loop hands them the same arrays each time."""
    loop = make_loop(backend)
    loop.prompt(IDS)
    loop.step(3)
    seen = []
    for stage in ("prologue", "block", "epilogue"):
        method = getattr(backend, stage)

        def spy(*args, method=method):
            seen.append(args[-2])  # the lanes
            return method(*args)

        monkeypatch.setattr(backend, stage, spy)
    loop.step(3)
    first = list(seen)
    seen.clear()
    loop.step(3)
    assert len(first) == 5
    assert all(lanes is before for lanes, before in zip(seen, first, strict=True))
    assert {(lanes.positions[0, 0], lanes.cached[0], lanes.last[0]) for lanes in seen} == {(22, 22, 22)}
