"""Sessions of the lane engine: windows that move on, what they give back, several at once, stopped ones."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from lanes_files import stored
from programs import HEADS, PROGRAMS, VOCAB, windowed

from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import F32, Backend, Lanes
from edgeloop.runtime.engines.native.cache import NativeCache
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Activations, LaneArrays, library
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import EdgeloopError, EngineError, UsageError
from edgeloop.runtime.model.program import Program

TOKENS, BLOCK, SLACK = 320, 16, 128
IDS = np.random.default_rng(0).integers(0, VOCAB, TOKENS)
Opened = Callable[..., tuple[NativeBackend, ReferenceBackend]]


@pytest.fixture
def opened(lane_engine: Path, tmp_path: Path) -> Iterator[Opened]:
    engines: list[NativeBackend] = []

    def get(made: Program, **asked: object) -> tuple[NativeBackend, ReferenceBackend]:
        path, (tensors, group) = tmp_path / f"{len(engines)}-{NAME}", stored(made, "none")
        write_lanes(path, made, tensors, group)
        engines.append(NativeBackend(made, path, activations=Activations.FLOAT, **asked))  # type: ignore[arg-type]
        return engines[-1], ReferenceBackend(made, tensors, group)

    yield get
    for engine in engines:
        engine.close()


def run(backend: Backend, pieces: Sequence[int]) -> tuple[F32, SequentialDecoder]:
    """Logits of all of IDS, cut into ``pieces``."""
    loop, found, start = SequentialDecoder(backend, backend.new_cache(1, TOKENS)), [], 0
    for size in pieces:
        rows = loop.prompt(IDS[start : start + size], rows="all")
        assert rows is not None
        found.append(rows.copy())
        start += size
    return np.concatenate(found), loop


@pytest.mark.parametrize("slot", ["own", "first"])
@pytest.mark.parametrize("windows", [(5, 5), (17, 40), (5, None)])
def test_a_window_moves_on(
    opened: Opened, windows: tuple[int | None, ...], slot: Literal["own", "first"]
) -> None:
    """The same bits however the text is cut, near the reference engine; a layer that sees less keeps less."""
    engine, reference = opened(windowed(windows, TOKENS, slot))
    wanted, _ = run(reference, [TOKENS])
    whole, _ = run(engine, [TOKENS])
    np.testing.assert_allclose(whole, wanted, atol=1e-5)
    for pieces in ([100, 100, 100, 20], [200, *[1] * 120], [33] * 9 + [23]):
        rows, loop = run(engine, pieces)
        np.testing.assert_array_equal(rows, whole)
    slots = 1 if slot == "first" else 3
    row = 2 * 4 * HEADS.kv_heads * HEADS.head_dim
    most = [min(TOKENS, (w or TOKENS) + SLACK + 3 * BLOCK + pieces[0]) for w in windows]
    assert loop.cache.nbytes <= slots * row * sum(most)
    if None not in windows:
        assert loop.cache.nbytes < slots * row * TOKENS * len(windows)


def test_back_into_a_window_as_far_as_it_is_kept(opened: Opened) -> None:
    engine, _ = opened(windowed((5, 9), TOKENS))
    wanted, loop = run(engine, [64] * 5)
    assert loop.cache.can_truncate(TOKENS, TOKENS - SLACK)
    assert not loop.cache.can_truncate(TOKENS, TOKENS - SLACK - 1)
    loop.truncate(TOKENS - 50)
    again = loop.prompt(IDS[-50:], rows="all")
    np.testing.assert_array_equal(again, wanted[-50:])
    with pytest.raises(UsageError, match="sliding window has moved past token 20"):
        engine.block(np.zeros((1, 1, 8), np.float32), Lanes.single(0, 20, 1, 0), loop.cache)
    engine.block(np.zeros((1, 1, 8), np.float32), Lanes.single(0, 0, 1, 0), loop.cache)  # a new sequence


def test_sessions_of_one_model_are_used_by_several_threads(opened: Opened) -> None:
    engine, _ = opened(PROGRAMS["relaxed"](), threads=2)

    def once() -> F32:
        loop = SequentialDecoder(engine, engine.new_cache(1, 16))
        rows = [loop.prompt(IDS[at : at + 3], rows="all") for at in (0, 3, 6)]
        return np.concatenate([row for row in rows if row is not None])

    wanted, found = once(), list[F32]()
    threads = [threading.Thread(target=lambda: found.extend(once() for _ in range(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for rows in found:
        np.testing.assert_array_equal(rows, wanted)


def test_a_stopped_call_is_an_error_and_the_next_one_goes_on(opened: Opened) -> None:
    engine, _ = opened(PROGRAMS["relaxed"]())
    cache = engine.new_cache(1, 8)
    assert isinstance(cache, NativeCache)
    ids, lanes = np.array([[1, 2]]), Lanes.single(0, 0, 2, 0)
    wanted = engine.prologue(ids, lanes, cache).copy()
    library().el_stop(cache.sessions["prologue"].pointer)
    with pytest.raises(EngineError, match="stopped"):
        engine.prologue(ids, lanes, cache)
    np.testing.assert_array_equal(engine.prologue(ids, lanes, cache), wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_computes_the_same(opened: Opened) -> None:
    """It has none of the threads and makes its own; nothing waits for the others."""
    engine, _ = opened(PROGRAMS["relaxed"](), threads=2)
    cache = engine.new_cache(1, 8)
    ids, lanes = np.array([[1, 2]]), Lanes.single(0, 0, 2, 0)
    wanted = engine.prologue(ids, lanes, cache).copy()
    child = os.fork()
    if not child:
        same = False
        try:
            same = bool((engine.prologue(ids, lanes, cache) == wanted).all())
        finally:
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_processes_that_are_forked_while_it_computes(opened: Opened) -> None:
    """Each gets the same numbers, or one line that says to open the bundle again; none waits for ever."""
    engine, _ = opened(PROGRAMS["relaxed"](), threads=2)
    cache, other, stop = engine.new_cache(1, 8), engine.new_cache(1, 8), threading.Event()
    ids, lanes, others = np.array([[1, 2]]), Lanes.single(0, 0, 2, 0), Lanes.single(0, 0, 2, 0)
    wanted = engine.prologue(ids, lanes, cache).copy()

    def compute() -> None:
        while not stop.is_set():
            engine.prologue(ids, others, other)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert {_forked(lambda: engine.prologue(ids, lanes, cache), wanted) for _ in range(20)} <= {0, 1}
        assert isinstance(cache, NativeCache)
        with cache.sessions["prologue"].alone:  # as a call has it
            assert _forked(lambda: engine.prologue(ids, lanes, cache), wanted) == 1
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(engine.prologue(ids, lanes, cache), wanted)


def _forked(compute: Callable[[], F32], wanted: F32) -> int:
    """What became of ``compute`` in a copy of the process: 0: the numbers that are wanted, 1: one line, 2: else."""
    child = os.fork()
    if not child:
        found = 2
        try:
            signal.alarm(60)  # a child that waits is ended
            found = 0 if (compute() == wanted).all() else 2
        except EdgeloopError as error:
            found = 1 if "forked" in str(error) and "\n" not in str(error) else 2
        finally:
            os._exit(found)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are pinned on Linux only")
def test_threads_are_pinned(opened: Opened) -> None:
    """Those of the engine, to the processors that are named in turn; the caller's stays where it is."""
    allowed = sorted(os.sched_getaffinity(0))
    before, cpus = set(_threads()), [allowed[0], allowed[-1], allowed[0]]
    engine, _ = opened(PROGRAMS["relaxed"](), cpus=cpus)
    assert engine.info.threads == 3
    engine.prologue(np.array([[1, 2]]), Lanes.single(0, 0, 2, 0), engine.new_cache(1, 8))
    made = _threads()
    assert sorted(str(made[thread]) for thread in set(made) - before) == sorted(map(str, cpus[1:]))
    assert os.sched_getaffinity(0) == set(allowed)
    for cpu in (1023, 5000, -1):
        with pytest.raises(UsageError, match=f"may not use processor {cpu}; name others") as caught:
            opened(PROGRAMS["relaxed"](), cpus=[cpus[0], cpu])
        assert "\n" not in str(caught.value)


def _threads() -> dict[str, str]:
    """The processors that each thread of the process may run on, as Linux tells them."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        lines = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
        found[thread.name] = lines["Cpus_allowed_list"].strip()
    return found


def test_two_lanes_of_one_slot_are_refused(opened: Opened) -> None:
    engine, _ = opened(PROGRAMS["relaxed"]())
    cache = engine.new_cache(2, 8)
    assert isinstance(cache, NativeCache)
    call, state = LaneArrays(count=2, stride=1), np.zeros((2, 1, 8), np.float32)
    arrays = {
        "depth": np.zeros(2, np.int64),
        "cached": np.zeros(2, np.int32),
        "tokens": np.ones(2, np.int32),
        "positions": np.zeros((2, 1), np.int64),
        "slots": np.array([3, 3], np.int32),
    }
    for name, array in arrays.items():
        setattr(call, name, array.ctypes.data)
    session, address = cache.sessions["block"], state.ctypes.data
    with pytest.raises(UsageError, match="two lanes have slot 3"):
        session("el_block", ctypes.byref(call), address, address)
    arrays["slots"][1] = 0
    session("el_block", ctypes.byref(call), address, address)
    assert (state[0] == state[1]).all()
