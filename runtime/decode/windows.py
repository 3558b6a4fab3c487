"""Runs a whole text at full depth, in disjoint windows of the context, and shows every depth to a visitor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engines.backend import F32, I64, Lanes
from ..engines.kv import KVCache
from ..errors import UsageError
from .evaluation import loss
from .sequential import SequentialDecoder

VisitDepths = Callable[[int, int, F32, F32, F32], None]
"""Called with (depth, index of the chunk's first token, state that entered the depth [S, D], state after it, logits
[S, V] of that one); all are only lent."""
Visit = Callable[[int, int, F32], None]
"""Called with (depth, index of the chunk's first token, logits [S, V] of the state after that depth), only lent."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss over ``tokens`` predictions: at full depth, and after each depth (the last too)."""

    perplexity: float
    perplexity_per_depth: tuple[float, ...]
    tokens: int


class DepthReader:
    """Reads the state out after every depth, beside a decoder at full depth.

    An exit has its own K/V in the epilogue's layers, so all the tokens that are cached must have come through here.
    """

    def __init__(self, decoder: SequentialDecoder) -> None:
        self.decoder = decoder
        self.depths = decoder.backend.program.depths
        self._read = 0  # tokens of which every exit has K/V
        self._caches: KVCache | None = None
        if self.depths > 1:
            # One sequence an exit. Only the epilogue's caches are ever touched, so only they take memory.
            self._caches = decoder.backend.new_cache(self.depths - 1, decoder.capacity)

    def run(self, ids: I64, visit: Visit) -> None:
        """Run ids [S]; ``visit`` sees every depth of every chunk. Only one chunk's logits of one depth exist at a time.

        UsageError when tokens were run that did not come through here.
        """
        decoder, outer = self.decoder, self.decoder.observe
        if not decoder.cached:
            self._read = 0
        if self._read != decoder.cached:
            raise UsageError(
                f"{decoder.cached} tokens are cached, {self._read} of them with every exit; reset the decoder first"
            )
        ids = decoder.checked(ids)
        at = 0

        def observe(depth: int, state: F32) -> None:
            if outer is not None:
                outer(depth, state)
            if depth < self.depths - 1:
                visit(depth, at, self._logits(depth, state))

        try:
            decoder.observe = observe
            while at < len(ids):
                # Where prompts see themselves the first token goes alone, so that none sees what it is to predict.
                alone = decoder.backend.program.prefix_lm and not decoder.cached
                part = ids[at : at + (1 if alone else decoder.chunk)]
                logits = decoder.prompt(part, "all")
                visit(self.depths - 1, at, logits)
                at += len(part)
                self._read = decoder.cached
        finally:
            decoder.observe = outer

    def _logits(self, depth: int, state: F32) -> F32:
        """Return the logits [n, V] of state [1, n, D] after ``depth``, of the tokens behind the cached ones."""
        assert self._caches is not None
        n = state.shape[1]
        lanes = Lanes.single(depth, self._read, n, self._caches.slot("epilogue", depth, depth))
        return self.decoder.backend.epilogue(state, np.arange(n), lanes, self._caches)


class EndReader:
    """Reads a text out at its end alone, under a decoder's own policy: what ``DepthReader`` is at full depth."""

    depths = 1

    def __init__(self, decoder: SequentialDecoder) -> None:
        self.decoder = decoder

    def run(self, ids: I64, visit: Visit) -> None:
        """Run ids [S]; ``visit`` sees every chunk once, as depth 0."""
        for at in range(0, len(ids), self.decoder.chunk):
            visit(0, at, self.decoder.prompt(ids[at : at + self.decoder.chunk], "all"))


def visit_depths(decoder: SequentialDecoder, stream: I64, context: int, visit: VisitDepths) -> None:
    """Run ``stream`` [S] at full depth, in windows; ``visit`` sees every depth of every chunk."""
    reader = DepthReader(decoder)
    states: list[F32] = []  # before each depth, and after the last one

    def observe(depth: int, state: F32) -> None:
        if depth == 0:
            assert decoder.entered is not None
            states[:] = [decoder.entered[0].copy()]
        states.append(state[0].copy())

    decoder.observe = observe
    try:
        for window in range(0, len(stream), context):
            decoder.reset()

            def seen(depth: int, first: int, logits: F32, window: int = window) -> None:
                visit(depth, window + first, states[depth], states[depth + 1], logits)

            reader.run(stream[window : window + context], seen)
    finally:
        decoder.observe = None


def perplexity(decoder: SequentialDecoder, stream: I64, context: int) -> Perplexity:
    """Return the perplexity of ``stream`` [S], S ≥ 2: each token but the first is predicted once, within its window."""
    reader = DepthReader(decoder)
    total = np.zeros(decoder.backend.program.depths)
    for start in range(0, len(stream) - 1, context):
        targets = stream[start + 1 : start + 1 + context]

        def visit(depth: int, first: int, logits: F32, targets: I64 = targets) -> None:
            total[depth] += loss(logits, targets[first : first + len(logits)])

        decoder.reset()
        reader.run(stream[start : start + len(targets)], visit)
    per_depth = tuple(float(p) for p in np.exp(total / (len(stream) - 1)))
    return Perplexity(per_depth[-1], per_depth, len(stream) - 1)
