"""The sequences of a batch server's cache: which are in use, and what they hold for the requests to come.

A sequence that its request has left keeps its tokens until another request needs the place, or the memory. A prompt
that begins with the same ids goes on behind them: in that sequence, if it holds nothing else, or with a copy of the
rows in common, whose memory an engine may share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..decode.sequence import TokenSequence
from ..engines.backend import I64
from .budget import KvBudget

WORTHWHILE = 4
"""Tokens in common with a prompt, at least, for which rows are copied or a longer context is given up."""
WORTH_A_WAIT = 16
"""Tokens of a prompt more, at least, for which it waits until another one that begins alike has run them."""
_NO_IDS = np.empty(0, np.int64)


@dataclass(eq=False)
class PooledSequence:
    """One sequence of the cache: ``tokens`` is its state, and ids [≥ tokens.cached] the tokens that it ran.

    ``prompt``: how many of them, from the first on, are its request's prompt. ``most``: tokens that it may come to
    hold. ``free``: no request uses it.
    """

    number: int
    tokens: TokenSequence
    ids: I64 = field(default_factory=lambda: _NO_IDS)
    prompt: int = 0
    most: int = 0
    free: bool = True

    @property
    def reusable(self) -> int:
        """How many of its tokens have the K/V now that they would have in a prompt."""
        cached = self.tokens.cached
        if self.free:
            return cached if self.tokens.steps_like_prompt else min(cached, self.prompt)
        return min(cached, self.prompt)


class SequencePool:
    """Hands out the sequences of a cache, one a request."""

    def __init__(
        self,
        budget: KvBudget,
        sequences: int,
        make: Callable[[], TokenSequence],
        *,
        reuse: bool,
        copies: bool,
    ) -> None:
        """``budget``: of the cache. ``make`` gives an empty TokenSequence. ``reuse``: prompts go on behind what a
        sequence holds already. ``copies``: the cache's rows can be copied from one sequence to another."""
        self.budget, self._cache = budget, budget.cache
        self._make, self._reuse, self._copies = make, reuse, copies
        self._places = [PooledSequence(number, make()) for number in range(sequences)]
        self._free = list(self._places)
        self.prompt_tokens = self.reused_tokens = 0
        """Tokens of all prompts so far, and those of them that a sequence held already."""

    @property
    def free(self) -> list[int]:
        """The numbers of the sequences that no request uses, the one that was left first in front."""
        return [place.number for place in self._free]

    def awaits(self, prompt: I64) -> bool:
        """Return whether prompt [S] had better wait: a request that runs is about to have run more of it."""
        if not (self._reuse and self._copies) or self._cache.window is not None:
            return False
        runs = [place for place in self._places if not place.free and place.tokens.cached < place.prompt]
        coming = max((_common(place.ids[: place.prompt], prompt) for place in runs), default=0)
        return coming >= WORTH_A_WAIT and coming - self._longest(prompt)[1] >= WORTH_A_WAIT

    def take(self, prompt: I64, most: int) -> tuple[PooledSequence, int] | None:
        """Choose a place for prompt [S], of the free ones, of which there must be one, which may come to have ``most``
        tokens with its answer.

        → the place, and how many tokens of the prompt it holds now, at most S − 1. None: there is no room in memory
        until another request ends.
        """
        source, common = self._longest(prompt) if self._reuse else (None, 0)
        # Empty places first, then the one that was left first.
        target: PooledSequence = min(self._free, key=lambda place: place.tokens.cached > 0)
        if source is None or (common < WORTHWHILE and common < source.tokens.cached):
            source, common = None, 0
        elif source.free and (common == source.tokens.cached or target is source or not self._copies):
            target = source
        elif not self._copies:
            source, common = None, 0
        if not self._make_room(source, target, common, most):
            if source is None or not source.free or not self._make_room(None, source, 0, most):
                return None
            target, source, common = source, None, 0  # what it would have gone on from has had to go
        if source is not None and source is not target:
            self._copy(source, target, common)
        self._free.remove(target)
        target.free = False
        self._keep(target, common)
        target.ids, target.prompt, target.most = prompt, len(prompt), most
        self.prompt_tokens += len(prompt)
        self.reused_tokens += common
        return target, common

    def give_back(self, place: PooledSequence) -> None:
        """Take back a place whose request has ended; it keeps what it holds."""
        place.free = True
        self._free.append(place)

    def clear(self, place: PooledSequence) -> None:
        """Forget what a place holds."""
        place.tokens, place.ids, place.prompt = self._make(), _NO_IDS, 0
        self._trim(place)

    def _keep(self, place: PooledSequence, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens that a place holds."""
        if not tokens:
            self.clear(place)
        else:
            place.tokens.truncate(tokens)
            self._trim(place)

    def _trim(self, place: PooledSequence) -> None:
        self._cache.trim(place.number, place.tokens.cached, place.tokens.filled)

    def _make_room(
        self, source: PooledSequence | None, target: PooledSequence, common: int, most: int
    ) -> bool:
        """Clear free places, those that were left first, until a request of ``most`` tokens fits ``target``, behind
        ``common`` of ``source``'s if there is one → whether it does."""
        uses = [(min(place.tokens.filled), place.most) for place in self._places if not place.free]
        uses.append((min(common, *source.tokens.filled) if source is not None else 0, most))
        idle = [
            place for place in self._free if place is not source and place is not target and place.ids.size
        ]
        if target is not source and target.ids.size:
            idle.insert(0, target)  # it is cleared in any case
        while not self.budget.fits(uses):
            if not idle:
                return False
            self.clear(idle.pop(0))
        return True

    def _longest(self, prompt: I64) -> tuple[PooledSequence | None, int]:
        """Find the place that holds most of prompt [S] from its first token on → the place, how many tokens."""
        best: PooledSequence | None = None
        most = 0
        for place in self._places:
            common = _common(place.ids[: place.reusable], prompt)
            if common > most and place.tokens.can_truncate(self._cache, common):
                best, most = place, common
        return best, most

    def _copy(self, source: PooledSequence, target: PooledSequence, tokens: int) -> None:
        """Make ``target`` hold the first ``tokens`` tokens of ``source``."""
        self.clear(target)
        state = self._make()
        state.restore(source.tokens.snapshot())
        state.truncate(tokens)
        self._cache.copy_sequence(target.number, self._cache, source.number, tokens, state.filled)
        target.tokens, target.ids = state, source.ids[:tokens].copy()


def _common(ids: I64, prompt: I64) -> int:
    """Return how many tokens of prompt [S], but for its last one, ids [N] begins with."""
    held = min(len(ids), len(prompt) - 1)
    differ = np.flatnonzero(ids[:held] != prompt[:held])
    return int(differ[0]) if len(differ) else held
