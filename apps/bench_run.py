"""One run of a benchmark: a prompt, then token after token, timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..runtime.decode.sequential import SequentialDecoder


@dataclass(frozen=True)
class Run:
    """One run, in milliseconds."""

    prefill: float
    tokens: tuple[float, ...]
    per_depth: tuple[float, ...]
    host_per_depth: float


def measure(loop: SequentialDecoder, prompt: npt.NDArray[np.int64], tokens: int) -> Run:
    """One run: read ``prompt`` [S], then write ``tokens`` tokens."""
    from ..runtime.timing import Stopwatch

    loop.reset()
    watch = Stopwatch()
    logits = loop.prompt(prompt)
    prefill = watch.lap_ms()
    loop.clock.restart()
    times = []
    for _ in range(tokens):
        # The choice of a token is part of its time.
        logits = loop.prompt(logits[-1:].argmax(-1))
        times.append(watch.lap_ms())
    return Run(prefill, tuple(times), loop.clock.ms_per_depth, loop.clock.host_ms_per_depth)
