"""Where the time of a token goes: prologue, block at each depth, epilogue, the choice of a token, the host's own work.

The host drives the depth loop here, stage by stage, whatever the engine could do by itself, and a proxy around the
engine takes the time of each call. An engine that runs whole tokens is quicker without: what it saves is between the
calls, not in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from time import perf_counter_ns
from typing import Any, cast

import numpy as np

from ...runtime.decode.sampling import Sampler, SamplingOptions
from ...runtime.engines.backend import F32, I64, Backend, Lanes
from ...runtime.engines.kv import KVCache
from .record import Measure
from .runner import Opened, Runner, Setup
from .tokens import ms_of
from .turns import Effort, Turns, take_turns

TOKENS = 8
"""Of a turn."""
SAMPLERS = {
    "choice, greedy": SamplingOptions(),
    "choice, temperature 0.8, top-p 0.95": SamplingOptions(temperature=0.8, top_p=0.95),
}


class TimedBackend:
    """An engine whose stages' calls are counted, in nanoseconds by stage and depth; all else is the engine's own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.spent: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        return self._timed("prologue", lambda: self._backend.prologue(ids, lanes, cache))

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        name = f"block, depth {int(lanes.depth[0]) + 1}"
        return self._timed(name, lambda: self._backend.block(state, lanes, cache))

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        return self._timed("epilogue", lambda: self._backend.epilogue(state, rows, lanes, cache))

    def _timed(self, name: str, call: Callable[[], F32]) -> F32:
        begin = perf_counter_ns()
        found = call()
        self.spent[name] += perf_counter_ns() - begin
        return found


def stage_measures(
    opened: Opened, setup: Setup, prompt: int, effort: Effort
) -> tuple[list[Measure], Turns[dict[str, float]]]:
    """Milliseconds a token of every stage at full depth behind ``prompt`` tokens, and the turns that say so."""
    timed = TimedBackend(opened.backend)
    runner = Runner(opened, Setup(setup.bundle, kv=setup.kv), prompt + TOKENS + 1, cast(Backend, timed))
    runner.decoder.whole_tokens = False
    ids = runner.text(prompt)

    def turn() -> dict[str, float]:
        runner.forget()
        runner.read(ids)
        timed.spent.clear()
        clock = runner.decoder.clock
        clock.restart()
        logits = runner.decoder.prompt(ids[-1:])
        for token in ids[: TOKENS - 1].tolist():
            logits = runner.decoder.step(token)
        found = {name: ns / 1e6 / TOKENS for name, ns in timed.spent.items()}
        found["the host's loop"] = (clock.total_ns - sum(timed.spent.values())) / 1e6 / TOKENS
        for name, options in SAMPLERS.items():
            found[name] = ms_of(partial(Sampler(options).choose, np.array(logits[-1]), ids, len(ids)))
        return found

    turns = take_turns({"stages": turn}, itemgetter("epilogue"), effort)["stages"]
    names = sorted(turns.values[0], key=_order)
    return [
        Measure(name, "a token by stages, ms", "ms", "less", turns.estimate(itemgetter(name)))
        for name in names
    ], turns


def _order(name: str) -> tuple[int, str]:
    first = ("prologue", "block", "epilogue", "choice", "the host")
    return next(i for i, begin in enumerate(first) if name.startswith(begin)), name
