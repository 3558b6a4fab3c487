"""The sequences of a batch server's cache: which are in use, and what they hold for the requests to come.

A sequence that its request has left keeps its tokens until another request needs the place. A prompt that begins with
the same ids goes on behind them: in that sequence, if it holds nothing else, or with a copy of the rows in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..decode.sequence import TokenSequence
from ..engines.backend import I64
from ..engines.kv import KVCache

WORTHWHILE = 4
"""Tokens in common with a prompt, at least, for which rows are copied or a longer context is given up."""
_NO_IDS = np.empty(0, np.int64)


@dataclass(eq=False)
class PooledSequence:
    """One sequence of the cache: ``tokens`` is its state, and ids [≥ tokens.cached] the tokens that it ran.

    ``prompt``: how many of them, from the first on, are its request's prompt. ``free``: no request uses it.
    """

    number: int
    tokens: TokenSequence
    ids: I64 = field(default_factory=lambda: _NO_IDS)
    prompt: int = 0
    free: bool = True

    @property
    def reusable(self) -> int:
        """How many of its tokens have the K and V now that they would have in a prompt."""
        cached = self.tokens.cached
        if self.free:
            return cached if self.tokens.steps_like_prompt else min(cached, self.prompt)
        return self.prompt if cached >= self.prompt else 0


class SequencePool:
    """Hands out the sequences of ``cache``, one a request."""

    def __init__(
        self, cache: KVCache, sequences: int, make: Callable[[], TokenSequence], *, reuse: bool, copies: bool
    ) -> None:
        """``make`` gives an empty TokenSequence. ``reuse``: prompts go on behind what a sequence holds already.

        ``copies``: the cache's rows can be copied from one sequence to another.
        """
        self._cache, self._make, self._reuse, self._copies = cache, make, reuse, copies
        self._places = [PooledSequence(number, make()) for number in range(sequences)]
        self._free = list(self._places)
        self.prompt_tokens = self.reused_tokens = 0
        """Tokens of all prompts so far, and those of them that a sequence held already."""

    @property
    def free(self) -> list[int]:
        """The numbers of the sequences that no request uses, the one that was left first in front."""
        return [place.number for place in self._free]

    def take(self, prompt: I64) -> tuple[PooledSequence, int]:
        """Choose a place for prompt [S], of the free ones, of which there must be one.

        → the place, and how many tokens of the prompt it holds now, at most S − 1.
        """
        self.prompt_tokens += len(prompt)
        source, common = self._longest(prompt) if self._reuse else (None, 0)
        # Empty places first, then the one that was left first.
        target = min(self._free, key=lambda place: place.tokens.cached > 0)
        if source is None or (common < WORTHWHILE and common < source.tokens.cached):
            common = 0
        elif source.free and (common == source.tokens.cached or target is source or not self._copies):
            target = source
        elif self._copies:
            self._copy(source, target, common)
        else:
            common = 0
        self._free.remove(target)
        target.free = False
        if common:
            target.tokens.truncate(common)
        else:
            self.clear(target)
        target.prompt = len(prompt)
        self.reused_tokens += common
        return target, common

    def give_back(self, place: PooledSequence) -> None:
        """Take back a place whose request has ended; it keeps what it holds."""
        place.free = True
        self._free.append(place)

    def clear(self, place: PooledSequence) -> None:
        """Forget what a place holds."""
        place.tokens, place.ids, place.prompt = self._make(), _NO_IDS, 0

    def _longest(self, prompt: I64) -> tuple[PooledSequence | None, int]:
        """Find the place that holds most of prompt [S] from its first token on → the place, how many tokens."""
        best: PooledSequence | None = None
        most = 0
        for place in self._places:
            held = min(place.reusable, len(prompt) - 1)
            differ = np.flatnonzero(place.ids[:held] != prompt[:held])
            common = int(differ[0]) if len(differ) else held
            if common > most and place.tokens.can_truncate(self._cache, common):
                best, most = place, common
        return best, most

    def _copy(self, source: PooledSequence, target: PooledSequence, tokens: int) -> None:
        """Make ``target`` hold the first ``tokens`` tokens of ``source``."""
        state = self._make()
        state.restore(source.tokens.snapshot())
        state.truncate(tokens)
        self._cache.copy_sequence(target.number, self._cache, source.number, tokens, state.filled)
        target.tokens, target.ids = state, source.ids[:tokens].copy()
