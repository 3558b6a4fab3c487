"""Where the time of a token goes: prologue, block at each depth, epilogue, the choice of a token, the host's own work.

The host drives the depth loop here, stage by stage, whatever the engine could do by itself, and a proxy around the
engine takes the time of each call. An engine that runs whole tokens is quicker without: what it saves is between the
calls, not in them.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import cast

import numpy as np

from ...runtime.decode.sampling import Sampler, SamplingOptions
from ...runtime.engines.backend import Backend
from .calls import LoggedBackend
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


def stage_measures(
    opened: Opened, setup: Setup, prompt: int, effort: Effort
) -> tuple[list[Measure], Turns[dict[str, float]]]:
    """Milliseconds a token of every stage at full depth behind ``prompt`` tokens, and the turns that say so."""
    logged = LoggedBackend(opened.backend)
    runner = Runner(opened, Setup(setup.bundle, kv=setup.kv), prompt + TOKENS + 1, cast(Backend, logged))
    ids = runner.text(prompt)

    def turn() -> dict[str, float]:
        runner.forget()
        runner.read(ids)
        logged.calls.clear()
        clock = runner.decoder.clock
        clock.restart()
        logits = runner.decoder.prompt(ids[-1:])
        for token in ids[: TOKENS - 1].tolist():
            logits = runner.decoder.step(token)
        spent = logged.spent
        found = {name: ns / 1e6 / TOKENS for name, ns in spent.items()}
        found["the host's loop"] = (clock.total_ns - spent.total()) / 1e6 / TOKENS
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
