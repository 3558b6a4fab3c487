"""Clocks and memory: what a generation costs, counted where it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None where the platform does not say."""
    # Linux's ru_maxrss starts from the memory of the process that started this one; VmHWM is our own.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int | None:
    """Return the resident memory of this process now, in bytes; None where the platform does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


@dataclass(frozen=True)
class Memory:
    """Bytes of this process that are resident: private, and mapped from files (libraries too); the most there was."""

    anonymous: int
    file: int
    peak: int


def memory_now() -> Memory | None:
    """Return the memory that this process has now; None where the platform does not say."""
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if line.startswith(("Rss", "VmHWM")))
        private, file, peak = (int(found[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "VmHWM"))
        return Memory(private, file, peak)
    return None


class Stopwatch:
    """Wall time since it was made or last restarted."""

    def __init__(self) -> None:
        self._start = time.perf_counter_ns()

    @property
    def ms(self) -> float:
        """Milliseconds so far."""
        return (time.perf_counter_ns() - self._start) / 1e6

    def lap_ms(self) -> float:
        """Return the milliseconds so far, and start again from zero."""
        now = time.perf_counter_ns()
        ms = (now - self._start) / 1e6
        self._start = now
        return ms


class LoopClock:
    """Nanoseconds of a depth loop: in all, inside the engine, and inside each depth's block calls.

    ``rows`` are tokens × depths that the block was run for, ``calls`` how often it was called at each depth; a call
    with lanes at several depths counts at each of them, with its share of the time, and once in ``block_calls``.
    ``decide_ns`` is what ``decisions`` to stop or to go on took, reading logits included where they were needed for it.
    ``drafts`` are tokens that were fed before they were final, ``accepted`` those that were right.
    """

    __slots__ = (
        "accepted",
        "block_calls",
        "block_ns",
        "calls",
        "decide_ns",
        "decisions",
        "drafts",
        "engine_ns",
        "passes",
        "rows",
        "tokens",
        "total_ns",
    )

    def __init__(self, depths: int) -> None:
        self.block_ns = [0] * depths
        self.calls = [0] * depths
        self.restart()

    def restart(self) -> None:
        """Set everything to zero."""
        self.total_ns = 0
        self.engine_ns = 0
        self.passes = self.rows = self.tokens = 0
        self.decisions = self.decide_ns = 0
        self.block_calls = self.drafts = self.accepted = 0
        self.block_ns[:] = [0] * len(self.block_ns)
        self.calls[:] = [0] * len(self.calls)

    def decided(self, start: int) -> None:
        """Count a decision that began at ``start``, a reading of ``perf_counter_ns``."""
        self.decide_ns += time.perf_counter_ns() - start
        self.decisions += 1

    @property
    def ms_per_depth(self) -> tuple[float, ...]:
        """Mean milliseconds of the block call at each depth."""
        return tuple(ns / 1e6 / n if n else 0.0 for ns, n in zip(self.block_ns, self.calls, strict=True))

    @property
    def block_share(self) -> float:
        """Block rows computed ÷ (tokens × R): 1 at full depth."""
        return self.rows / (self.tokens * len(self.calls)) if self.tokens else 1.0

    @property
    def host_ms_per_depth(self) -> float:
        """Mean milliseconds a depth that the loop itself spends outside the engine's calls."""
        depths = sum(self.calls)
        return (self.total_ns - self.engine_ns) / 1e6 / depths if depths else 0.0

    @property
    def passes_per_token(self) -> float:
        """Block calls a token, each of which reads the block's weights."""
        return self.block_calls / self.tokens if self.tokens else 0.0

    @property
    def acceptance(self) -> float | None:
        """The acceptance rate: right drafts ÷ drafts; None without drafts."""
        return self.accepted / self.drafts if self.drafts else None


@dataclass(frozen=True)
class GenerationStats:
    """What one generation cost. Rates are 0 where nothing was counted.

    Prefill is everything up to the logits of the last prompt token. Decode is from the first token to the
    last one, without the time that the caller took between steps; its rate counts the tokens after the first.
    """

    prompt_tokens: int
    """Tokens before the answer, of which ``prefill_tokens`` were run for it; the others had been run before."""
    prefill_tokens: int
    """Tokens of the prompt that were run."""
    prefill_tokens_per_s: float
    """Their rate."""
    time_to_first_token_ms: float
    """From when the first step is asked for to the first token, prefill included."""
    decode_tokens: int
    """Tokens of the answer."""
    decode_tokens_per_s: float
    """The rate of those after the first, without the time that the caller took."""
    depths: tuple[int, ...]
    """Depths run for each token (R without an exit rule)."""
    ms_per_depth: tuple[float, ...]
    """[R]: mean wall time of the block at each depth while decoding."""
    host_ms_per_depth: float
    """Mean time a depth spent in the depth loop outside the engine while decoding."""
    block_share: float
    """Block rows computed while decoding ÷ (tokens × R)."""
    passes_per_token: float
    """Block calls a token while decoding: R without exits, towards 1 when pipelined."""
    acceptance: float | None
    """The acceptance rate of drafts; None without drafts."""
    kv_bytes_per_token: int
    """Bytes of K/V of a token that runs every depth."""
    kv_bytes: int
    """Bytes of K/V held at the end."""
    peak_rss_bytes: int | None
    """The most memory that the process has had; None where the system does not say."""

    @property
    def mean_depth(self) -> float:
        """Mean of ``depths``."""
        return sum(self.depths) / len(self.depths) if self.depths else 0.0


class GenerationClock:
    """Times one generation: ``prefilled``, then for each token ``chose``, ``pause``, ``resume``."""

    def __init__(self, loop: Callable[[], LoopClock], kv: Callable[[], tuple[int, int]]) -> None:
        """``loop`` returns what the depth loop took, ``kv`` (bytes of a full token, bytes held), when they are
        needed."""
        self._loop = loop
        self._kv = kv
        self._watch = Stopwatch()
        self._prompt_tokens = self._prefill_tokens = 0
        self._prefill_ms = self._first_ms = self._decode_ms = 0.0
        self._depths: list[int] = []

    def prefilled(self, tokens: int, prompt: int) -> None:
        """Record that the logits after a prompt of ``prompt`` tokens are there, ``tokens`` of which were run now."""
        self._prompt_tokens, self._prefill_tokens = prompt, tokens
        self._prefill_ms = self._watch.ms
        self._loop().restart()

    def chose(self, depths: int) -> None:
        """Record that a token was chosen, after ``depths`` depths."""
        self._depths.append(depths)
        if len(self._depths) == 1:
            self._first_ms = self._watch.lap_ms()

    def pause(self) -> float:
        """Stop the clock while the caller has the token; return the milliseconds that it took."""
        ms = self._watch.lap_ms()
        self._decode_ms += ms
        return ms + self._first_ms if len(self._depths) == 1 else ms

    def resume(self) -> None:
        """Start the clock again: the caller wants the next token."""
        self._watch.lap_ms()

    def stats(self) -> GenerationStats:
        """Return what the generation has cost so far."""
        loop, (token_bytes, kv_bytes) = self._loop(), self._kv()
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            prefill_tokens=self._prefill_tokens,
            prefill_tokens_per_s=_rate(self._prefill_tokens, self._prefill_ms),
            time_to_first_token_ms=self._first_ms,
            decode_tokens=len(self._depths),
            decode_tokens_per_s=_rate(len(self._depths) - 1, self._decode_ms),
            depths=tuple(self._depths),
            ms_per_depth=loop.ms_per_depth,
            host_ms_per_depth=loop.host_ms_per_depth,
            block_share=loop.block_share,
            passes_per_token=loop.passes_per_token,
            acceptance=loop.acceptance,
            kv_bytes_per_token=token_bytes,
            kv_bytes=kv_bytes,
            peak_rss_bytes=peak_rss_bytes(),
        )


def _rate(count: int, ms: float) -> float:
    """Return ``count`` per second; 0 where nothing was counted."""
    return count / ms * 1000 if count > 0 and ms > 0 else 0.0
