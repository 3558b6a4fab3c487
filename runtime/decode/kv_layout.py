"""Where K/V of a token lie: which slot of the cache a depth has, and which row of it a token.

``per-depth``  a slot a depth; it holds the tokens that ran that depth, in their order
``shared``     one slot for all depths, of a model that was trained so: depth 0 writes a token's row, the others read it
``last``       one slot for all depths of a model that was trained with a slot a depth: each depth writes a token's row
               anew, so that the deepest one stays (Ouro, arXiv 2510.25741, section 5.4)
``last-N``     N slots that depths take in turn, depth d the slot d mod N: the rows of the deepest N stay (Huginn's
               ``latest-m4-compress-s``, arXiv 2502.05171, counts layers: s8 of its blocks of 4 is ``last-2``)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..engines.backend import F32, I64
from .stage_call import BLOCK, StageCall

RIDERS = 5
"""Rows between two chosen ones that ride along: up to here they cost less than one call more (demo model, int4: a call
of one row takes 0.15 ms, each row more 0.02 ms)."""


@dataclass(frozen=True, slots=True)
class RowCall:
    """A block call for some of the n tokens of a chunk, of which a router chose k for this depth.

    ``rows`` of the chunk go in; the answer's ``kept`` are the results of the chosen ones from ``part`` of their list.
    """

    rows: I64 | slice
    kept: I64 | slice
    part: slice


class PerDepth:
    """A slot a depth, with a row for each token that ran it."""

    slots: int | None = None
    """Slots a sequence needs in the block's caches; None: as many as the model has."""
    grows = True
    """Whether texts one after the other get what they would get as one."""

    def __init__(self, depths: int, gaps: bool = False) -> None:
        """``gaps``: whether slots lack the tokens that left before their depth; then a row is not its token's
        position."""
        self.filled = [0] * depths
        """By depth: tokens whose K/V are in its slot."""
        self.held: list[list[int]] = [[] for _ in range(depths)] if gaps else []
        """By depth: the positions of its slot's rows. Empty without gaps, where row i is the token at position i."""

    def block(self, depth: int, rows: F32, positions: I64) -> StageCall:
        """Return the call that brings ``rows`` [n, D] of the tokens at ``positions`` [n] through ``depth``."""
        first = self.filled[depth] if self.held else positions.item(0)
        return StageCall(BLOCK, depth, first, rows, positions)

    def wrote(self, call: StageCall) -> None:
        """Note that ``call`` was run: the slot of its depth holds K/V of its tokens.

        Rows behind them stay valid: with drafts, a later token may have its row there before an earlier one.
        """
        end = call.cached + len(call.positions)
        if end > self.filled[call.depth]:
            self.filled[call.depth] = end
        if self.held:
            self.held[call.depth] += call.positions.tolist()

    def wrote_from(self, depth: int, call: StageCall) -> None:
        """Note that ``call`` was run, which gave its tokens K/V at ``depth`` and all deeper ones, at the same
        rows."""
        self.filled[depth:] = [call.cached + len(call.positions)] * (len(self.filled) - depth)
        for held in self.held[depth:]:
            held += call.positions.tolist()

    def finished(self, cached: int) -> None:
        """Note that all tokens before position ``cached`` have run as deep as they will."""

    def rows_before(self, position: int) -> list[int]:
        """Return, by depth, how many rows of its slot are of tokens before ``position``."""
        if self.held:
            return [bisect_left(held, position) for held in self.held]
        return [min(n, position) for n in self.filled]

    def truncate(self, position: int) -> None:
        """Forget the rows of the tokens from ``position`` on."""
        self.filled[:] = self.rows_before(position)
        for held, count in zip(self.held, self.filled, strict=False):
            del held[count:]

    def row_calls(self, depth: int, chosen: I64, count: int) -> Iterator[RowCall]:
        """Yield the block calls that bring the ``chosen`` rows [k] of a chunk of ``count`` tokens through ``depth``."""
        if len(chosen):
            yield RowCall(chosen, slice(None), slice(None))


class SharedSlot(PerDepth):
    """One slot for all depths, where a token's row is its position: those that leave early have one too."""

    def finished(self, cached: int) -> None:
        """Note that every depth finds all tokens before ``cached``, however deep they went."""
        self.filled[:] = [cached] * len(self.filled)

    def row_calls(self, depth: int, chosen: I64, count: int) -> Iterator[RowCall]:
        """Yield at depth 0 one call of all tokens; deeper, a call for each run of neighbours; what others get is
        dropped.

        The authors' forward runs every token through every depth and keeps the results of the chosen ones. Depth 0 has
        to, whomever the router chose: it makes the K/V of all positions. Deeper, a token has its own query only, so
        those that were not chosen can be left out, but the attention operator takes neighbours only. (Without its cache
        the authors' code shares nothing, even if it is set to; it trains with one, so sharing is what is meant.)
        """
        if depth == 0:
            yield RowCall(slice(0, count), chosen, slice(0, len(chosen)))
        elif len(chosen):
            ends = (np.flatnonzero(np.diff(chosen) > RIDERS + 1) + 1).tolist()
            for start, stop in pairwise((0, *ends, len(chosen))):
                first = int(chosen[start])
                yield RowCall(
                    slice(first, int(chosen[stop - 1]) + 1), chosen[start:stop] - first, slice(start, stop)
                )


class LastDepth(SharedSlot):
    """One slot for all depths, each of which writes it.

    A prompt runs with a slot a depth, of which the last one's rows stay (``sequential.py``): Ouro reuses the last
    depth's K/V when it decodes; doing so within the prompt costs it dearly.
    """

    slots = 1
    grows = False


class LastTwo(LastDepth):
    """Two slots, which depths take in turn."""

    slots = 2


class LastFour(LastDepth):
    """Four slots, which depths take in turn."""

    slots = 4


KV_LAYOUTS: dict[str, type[PerDepth]] = {
    "per-depth": PerDepth,
    "shared": SharedSlot,
    "last": LastDepth,
    "last-2": LastTwo,
    "last-4": LastFour,
}
LAST_DEPTHS = {layout.slots: name for name, layout in KV_LAYOUTS.items() if issubclass(layout, LastDepth)}
"""The names of those whose slots depths write anew, by how many slots they have."""
