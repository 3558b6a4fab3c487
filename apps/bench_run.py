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


def measure(decoder: SequentialDecoder, prompt: npt.NDArray[np.int64], tokens: int) -> Run:
    """One run: read ``prompt`` [S], then write ``tokens`` tokens, as a session does."""
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.timing import Stopwatch

    decoder.reset()
    watch = Stopwatch()
    logits = decoder.prompt(prompt)
    prefill = watch.lap_ms()
    decoder.clock.restart()
    times, token = [], int(logits[-1].argmax())
    by_engine = decoder.choose_by(SamplingOptions())
    for _ in range(tokens):
        # The choice of a token is part of its time.
        token = decoder.next(token) if by_engine else int(decoder.step(token)[-1].argmax())
        times.append(watch.lap_ms())
    return Run(prefill, tuple(times), decoder.clock.ms_per_depth, decoder.clock.host_ms_per_depth)
