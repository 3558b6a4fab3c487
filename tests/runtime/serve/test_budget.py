"""Memory of K and V: its bound, what waits for it, what is evicted, and what users with one beginning share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.serve.handle import Handle
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

CONTEXT = 256
SYSTEM = [7 + i % 50 for i in range(100)]


@pytest.fixture
def bundle(text_bundle: Callable[..., Path], lane_engine: Path) -> Path:
    return text_bundle(context_length=CONTEXT)


@pytest.fixture
def a_token(bundle: Path) -> int:
    """Bytes of K and V."""
    with BatchServer.open(bundle, engine="native", sequences=1) as server:
        return server.scheduler.cache.bytes_of(16) // 16


class Gate:
    """Ticks that wait to be let go, and the most that K and V took after any."""

    def __init__(self, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.running = 0, 0
        self._gate, tick = threading.Semaphore(0), server.scheduler.tick

        def gated() -> None:
            self._gate.acquire()
            tick()
            self.most = max(self.most, server.kv_bytes)
            self.running = max(self.running, len(server.scheduler.tasks))

        monkeypatch.setattr(server.scheduler, "tick", gated)

    def open(self) -> None:
        self._gate.release(1_000_000)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Callable[[BatchServer], Gate]:
    return lambda server: Gate(server, monkeypatch)


def alone(bundle: Path, prompt: list[int], tokens: int) -> tuple[int, ...]:
    with Session.open(bundle, engine="native") as session:
        return tuple(step.token for step in session.generate(prompt, tokens))


def test_a_limit_holds_whatever_is_asked_for(
    bundle: Path, a_token: int, gated: Callable[[BatchServer], Gate]
):
    """Requests that do not fit beside the others wait, and get what they get alone."""
    limit = 200 * a_token
    with BatchServer.open(bundle, engine="native", sequences=8, kv_limit=limit) as server:
        gate = gated(server)
        asked = [([3 + i] * (5 + 17 * i % 60), 20 + 7 * i % 40) for i in range(12)]
        handles = [server.submit(*each) for each in asked]
        gate.open()
        found = [handle.result(60) for handle in handles]
        assert gate.most <= limit
        assert 1 < gate.running < 8
    assert [each.tokens for each in found] == [alone(bundle, *each) for each in asked]


def test_one_that_is_larger_than_the_limit_is_refused(bundle: Path, a_token: int):
    with BatchServer.open(bundle, engine="native", sequences=2, kv_limit=64 * a_token) as server:
        with pytest.raises(
            UsageError, match=r"prompt and answer may have 109 tokens, \d+ bytes of K/V, and kv_limit is"
        ):
            server.submit(list(range(1, 100)), 11)
        assert len(server.submit(list(range(1, 50)), 11).result(30).tokens) == 11


def test_an_engine_that_takes_all_at_once_must_have_room_for_it(bundle: Path):
    with pytest.raises(
        UsageError, match=r"this engine takes \d+ bytes for K/V at once, and kv_limit is 9999"
    ):
        BatchServer.open(bundle, engine="reference", kv_limit=9999)
    with BatchServer.open(bundle, engine="reference", kv_limit=10**8) as server:
        assert len(server.submit([1, 2], 3).result(30).tokens) == 3
    with pytest.raises(UsageError, match="kv_limit is 0, wanted at least 1"):
        BatchServer.open(bundle, engine="native", kv_limit=0)


def test_what_nobody_uses_is_evicted_first(bundle: Path, a_token: int):
    """The one that was left first goes; those that fit stay, and are gone on from."""
    with BatchServer.open(bundle, engine="native", sequences=4, kv_limit=170 * a_token) as server:
        first, second = [3] * 40, [4] * 40
        for prompt in (first, second):
            assert server.submit(prompt, 8).result(30).reused == 0
        assert server.submit([*second, 9], 8).result(30).reused == 40
        assert server.submit([5] * 70, 8).result(30).reused == 0  # first has to go for it
        assert server.submit([*second, 9], 8).result(30).reused == 40
        assert server.submit([*first, 9], 8).result(30).reused == 0
        assert server.kv_bytes <= 170 * a_token


def test_a_large_request_does_not_wait_for_ever(
    bundle: Path, a_token: int, gated: Callable[[BatchServer], Gate]
):
    """Small ones that would fit do not overtake it."""
    with BatchServer.open(bundle, engine="native", sequences=4, kv_limit=160 * a_token) as server:
        gate, ended = gated(server), []
        handles = [server.submit([1 + i], 40) for i in range(3)]
        handles.insert(2, server.submit([9] * 100, 30))
        for handle in handles:
            end = handle.end

            def told(*how: object, handle: Handle = handle, end: Callable[..., None] = end) -> None:
                ended.append(handle)
                end(*how)

            handle.end = told  # type: ignore[method-assign, assignment]
        handles += [server.submit([20 + i], 40) for i in range(8)]
        gate.open()
        for handle in handles:
            assert not handle.result(60).cancelled
        assert gate.most <= 160 * a_token
        assert ended.index(handles[2]) <= 3


def test_users_with_one_beginning_prefill_it_once(bundle: Path, gated: Callable[[BatchServer], Gate]):
    """They come at the same time: those behind the first wait until it has run what they share."""
    with BatchServer.open(bundle, engine="native", sequences=6) as server:
        gate = gated(server)
        handles = [server.submit([*SYSTEM, 60 + i], 12) for i in range(6)]
        other = server.submit([2, 3], 4)
        gate.open()
        found = [handle.result(60) for handle in handles]
        assert [each.reused for each in found] == [0, *[100] * 5]
        assert len(other.result(60).tokens) == 4
    for i, each in enumerate(found):
        assert each.tokens == alone(bundle, [*SYSTEM, 60 + i], 12)


def test_what_users_share_takes_memory_once(bundle: Path, a_token: int, gated: Callable[[BatchServer], Gate]):
    """So more of them fit a limit than without."""
    limit = (112 + 5 * 32 + 16) * a_token  # the first one, and the blocks behind the beginning of five more
    with BatchServer.open(bundle, engine="native", sequences=6, kv_limit=limit) as server:
        gate = gated(server)
        handles = [server.submit([*SYSTEM, 60 + i], 12) for i in range(6)]
        gate.open()
        found = [handle.result(60) for handle in handles]
        assert [each.reused for each in found] == [0, *[100] * 5]
        assert gate.running == 6
        assert gate.most == (96 + 6 * 16) * a_token
    for i, each in enumerate(found):
        assert each.tokens == alone(bundle, [*SYSTEM, 60 + i], 12)


def test_who_waits_for_anothers_prompt_goes_on_when_that_is_cancelled(
    bundle: Path, gated: Callable[[BatchServer], Gate]
):
    with BatchServer.open(bundle, engine="native", sequences=2) as server:
        gate = gated(server)
        first, second = server.submit([*SYSTEM, 5], 3), server.submit([*SYSTEM, 6], 3)
        first.cancel()
        gate.open()
        assert second.result(60).tokens == alone(bundle, [*SYSTEM, 6], 3)
        assert first.result(60).cancelled
