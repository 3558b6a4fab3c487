"""A whole text at full depth, in disjoint windows of the context, with a look at every depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engines.backend import F32, I64
from .evaluation import loss
from .loop import DepthLoop

VisitDepths = Callable[[int, int, F32, F32, F32], None]
"""Called with (depth, index of the chunk's first token, state that entered the depth [S, D], state after it, logits
[S, V] of that one); all are only lent."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss over ``tokens`` predictions: at full depth, and after each depth (the last too)."""

    perplexity: float
    perplexity_per_depth: tuple[float, ...]
    tokens: int


def visit_depths(loop: DepthLoop, stream: I64, context: int, visit: VisitDepths) -> None:
    """Run ``stream`` [S]; ``visit`` sees every depth of every chunk."""
    before: list[F32] = []

    def observe(depth: int, state: F32) -> None:
        before.append(state[0].copy())

    loop.observe = observe
    try:
        for window in range(0, len(stream), context):
            loop.reset()
            end = min(window + context, len(stream))
            for at in range(window, end, loop.chunk):
                part = stream[at : min(at + loop.chunk, end)]

                def seen(depth: int, first: int, logits: F32, at: int = at) -> None:
                    assert loop.entered is not None
                    entered = before[depth - 1] if depth else loop.entered[0]
                    visit(depth, at, entered, before[depth], logits)

                before.clear()
                loop.forward_exits(part, seen)
    finally:
        loop.observe = None


def perplexity(loop: DepthLoop, stream: I64, context: int) -> Perplexity:
    """Of ``stream`` [S], S ≥ 2: every token but the first is predicted once, from those before it in its window."""
    total = np.zeros(loop.backend.program.depths)
    for start in range(0, len(stream) - 1, context):
        targets = stream[start + 1 : start + 1 + context]

        def visit(depth: int, first: int, logits: F32, targets: I64 = targets) -> None:
            total[depth] += loss(logits, targets[first : first + len(logits)])

        loop.reset()
        loop.forward_exits(stream[start : start + len(targets)], visit)
    per_depth = tuple(float(p) for p in np.exp(total / (len(stream) - 1)))
    return Perplexity(per_depth[-1], per_depth, len(stream) - 1)
