"""The lanes of one sequence's calls: arrays that are made once for each number of tokens, and written in place."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..engines.backend import I64, Lanes
from ..engines.kv import KVCache
from .stage_call import BLOCK, EPILOGUE, FILL, PROLOGUE, WHOLE, StageCall

_KEPT = 128
"""Numbers of tokens whose lanes are kept; chunks that lost some of their tokens come in every size."""


class SequenceLanes:
    """The lanes of one sequence of a cache."""

    def __init__(self, cache: KVCache, cache_sequence: int, depths: int) -> None:
        self._cache, self._sequence, self._depths = cache, cache_sequence, depths
        self._by_count: dict[int, TokenLanes] = {}
        self._placed: TokenLanes | None = None

    def of(self, call: StageCall) -> Lanes:
        """Return the lane of ``call``, with its tokens in it."""
        return self.place(call).made[call.stage][call.depth]

    def place(self, call: StageCall) -> TokenLanes:
        """Return the lanes of as many tokens as ``call`` has, with those in them.

        They are written only when other tokens come than in the call before: mostly once a token, not once a depth.
        """
        tokens = self._placed
        if tokens is None or call.positions is not tokens.positions or call.cached != tokens.cached:
            count = len(call.positions)
            tokens = self._by_count.get(count)
            if tokens is None:
                if len(self._by_count) >= _KEPT:
                    self._by_count.clear()
                tokens = self._by_count[count] = TokenLanes(self._cache, self._sequence, self._depths, count)
            tokens.place(call)
            self._placed = tokens
        return tokens


class TokenLanes:
    """The lanes of n tokens of one sequence for every stage and depth: one set of arrays, which all of them share.

    Decoding allocates nothing then, and an engine may keep its bindings.
    """

    def __init__(self, cache: KVCache, cache_sequence: int, depths: int, n: int) -> None:
        arrays = Lanes.single(0, 0, n, cache.slot("prologue", cache_sequence, 0))
        enters, loops, leaves = (
            _ByDepth(arrays, cache, stage, cache_sequence) for stage in ("prologue", "block", "epilogue")
        )
        self.made = {PROLOGUE: enters, WHOLE: enters, BLOCK: loops, FILL: loops, EPILOGUE: leaves}
        """By stage and depth."""
        self.depths = [loops[depth] for depth in range(depths)]
        """Those of the block, by depth."""
        self.all, self.last = np.arange(n), np.array([n - 1])
        """Rows that may be read out: [n], and [1]."""
        self.positions: I64 | None = None
        """Of the tokens that are in the arrays."""
        self.cached = 0
        """Tokens of their slot before them."""
        self._arrays = arrays

    def place(self, call: StageCall) -> None:
        """Put the tokens of ``call`` into the arrays."""
        arrays = self._arrays
        self.positions, self.cached = call.positions, call.cached
        arrays.positions[0] = call.positions
        arrays.cached[0] = call.cached
        arrays.refresh()  # and with it all that share them


class _ByDepth(dict[int, Lanes]):
    """The lanes of one stage, made when a depth is first used."""

    def __init__(self, arrays: Lanes, cache: KVCache, stage: str, cache_sequence: int) -> None:
        super().__init__()
        self._arrays, self._slot = arrays, partial(cache.slot, stage, cache_sequence)

    def __missing__(self, depth: int) -> Lanes:
        lanes = self[depth] = self._arrays.at(depth, self._slot(depth))
        return lanes
