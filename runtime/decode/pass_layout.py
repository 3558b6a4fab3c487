"""What passes of a pipeline with the same active depths have in common: their lanes, and what they read out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engines.backend import F32, I32, I64, Lanes
from .loop import DepthLoop


@dataclass(frozen=True, eq=False)
class PassLayout:
    """All that passes with the same active depths have in common; a pass writes the arrays in place.

    The active tokens are neighbours: the deepest has position q, the next q + 1, …. ``offset``: of each lane's
    position, from q. ``input`` [B, 1, D] is the block's. ``reads``: depths that are read out, deepest first, at the
    epilogue's flat rows ``rows``. A coda takes the tokens as one lane of n, oldest first: ``coda_lane`` and
    ``coda_input`` [1, n, D], whose token i is lane ``coda_from[i]``.
    """

    low: int
    high: int
    lanes: Lanes
    offset: I32
    input: F32
    reads: tuple[int, ...]
    rows: I64
    coda_lane: Lanes | None
    coda_input: F32
    coda_from: I64
    coda_steps: I64


def make_layout(loop: DepthLoop, active: tuple[int, ...], draft: int, judge: bool) -> PassLayout:
    """The shape of passes with tokens at the depths ``active``, of which ``draft``, judges and the last are read."""
    program = loop.backend.program
    last, width = program.depths - 1, program.width
    low, high = active[0], active[-1]
    deepest = active[::-1]
    offset = np.zeros(high - low + 1, np.int32)
    tokens = np.zeros_like(offset)
    for i, depth in enumerate(deepest):
        offset[depth - low], tokens[depth - low] = i, 1
    lanes = Lanes(
        np.arange(low, high + 1),
        np.zeros_like(offset),
        tokens,
        np.zeros((len(offset), 1), np.int64),
        loop.cache.slot("block", loop.sequence, low),
    )
    reads = tuple(d for d in deepest if d in (draft, last) or (judge and d > draft))
    rows = np.array([d - low for d in reads], np.int64)
    coda: Lanes | None = None
    n = 0
    if loop.epilogue_has_layers and reads:
        n = deepest.index(reads[-1]) + 1
        coda = Lanes.single(last, 0, n, loop.cache.slot("epilogue", loop.sequence, last))
        rows = np.array([deepest.index(d) for d in reads], np.int64)
    return PassLayout(
        low,
        high,
        lanes,
        offset,
        np.zeros((len(offset), 1, width), np.float32),
        reads,
        rows,
        coda,
        np.zeros((1, n, width), np.float32),
        np.array([d - low for d in deepest[:n]], np.int64),
        np.arange(n),
    )
