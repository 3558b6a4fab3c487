"""Counters add up, and memory is in bytes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeloop.runtime.timing import GenerationClock, LoopClock, Stopwatch, peak_rss_bytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux knows it as VmHWM")
def test_peak_memory_is_in_bytes():
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.split("VmHWM:")[1].split()[0])
    assert peak_rss_bytes() == pytest.approx(kibibytes * 1024, rel=0.1)


@pytest.fixture
def wait(monkeypatch):
    """``wait(5)`` lets five milliseconds pass, and nothing else does."""
    now = [1_000_000]
    clock = SimpleNamespace(perf_counter_ns=lambda: now[0])
    monkeypatch.setattr("edgeloop.runtime.timing.time", clock)
    return lambda ms: now.__setitem__(0, now[0] + round(1e6 * ms))


def test_stopwatch_laps(wait):
    watch = Stopwatch()
    wait(50)
    assert watch.lap_ms() == 50
    wait(3)
    assert watch.ms == 3


def test_loop_clock():
    clock = LoopClock(2)
    assert (clock.ms_per_depth, clock.host_ms_per_depth) == ((0.0, 0.0), 0.0)
    clock.block_ns[:] = [4_000_000, 8_000_000]
    clock.calls[:] = [4, 2]
    clock.tokens, clock.rows = 4, 6
    clock.passes, clock.total_ns, clock.engine_ns = 4, 18_000_000, 12_000_000
    assert clock.ms_per_depth == (1.0, 4.0)
    assert clock.host_ms_per_depth == 1.0
    assert clock.block_share == 0.75
    clock.restart()
    assert clock.ms_per_depth == (0.0, 0.0)


def test_the_callers_time_is_not_ours(wait):
    clock = GenerationClock(lambda: LoopClock(1), lambda: (8, 96))
    wait(20)
    clock.prefilled(7, 10)
    for _ in range(3):
        clock.chose(2)
        clock.pause()
        wait(50)
        clock.resume()
        wait(5)
    stats = clock.stats()
    assert (stats.prompt_tokens, stats.prefill_tokens, stats.decode_tokens) == (10, 7, 3)
    assert stats.depths == (2, 2, 2)
    assert (stats.mean_depth, stats.kv_bytes_per_token, stats.kv_bytes) == (2.0, 8, 96)
    assert stats.decode_tokens_per_s == pytest.approx(200)  # a token in 5 ms, not in 55
    assert stats.prefill_tokens_per_s == pytest.approx(350)
