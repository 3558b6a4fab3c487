"""The context of a session: its tokens, and the decoder that has run the first of them.

What a decoder has run is kept for as long as it can be gone on from. Where it cannot, the tokens are run again from
empty, as a prompt: a sliding window has moved past the place that is gone back to, or a text has to be run as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..decode.policy import Policy
from ..decode.sampling import SamplingOptions
from ..decode.sequential import SequentialDecoder
from ..engines.backend import F32
from ..errors import UsageError
from .saved_header import Contents

CACHE_STEP = 256
"""Caches are made for a multiple of this many tokens: what is needed, not the model's whole context."""
GROWTH = 3, 2
"""When a cache becomes too small, the next one is so many times as long: rows are copied seldom."""


class Context:
    """Tokens ``ids``, of which ``decoder`` has run some of the first."""

    def __init__(self, make: Callable[[int], SequentialDecoder], policy: Policy, most: int) -> None:
        """``make``: a decoder with an empty cache for so many tokens. ``policy``: its, as long as it is not lent.

        ``most``: tokens that a context may have.
        """
        self._make, self.policy, self.most = make, policy, most
        self.decoder: SequentialDecoder | None = None
        self._lent = False
        self.ids: list[int] = []
        self.answer: int | None = None
        """Where the last answer begins; None once something was appended behind it."""
        self.end = 0
        """Where the last answer ends: the token before was generated."""
        self.messages: list[dict[str, Any]] = []
        """The conversation, where the tokens are one: its first ``turns`` are the first ``said`` tokens."""
        self.turns = self.said = 0
        self.sampling = SamplingOptions()
        """Of the last answer."""

    @property
    def cached(self) -> int:
        """Tokens that were run, and need not be again."""
        return 0 if self.decoder is None or self._lent else self.decoder.cached

    def extend(self, ids: Sequence[int]) -> None:
        """Put new tokens behind the others."""
        if len(ids):
            self.ids += ids
            self.answer = None

    def replace(self, ids: Sequence[int]) -> int:
        """Make the context ``ids`` → how many of its first tokens were there before, and need not be run again."""
        common = next((i for i, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), None)
        common = min(len(self.ids), len(ids)) if common is None else common
        self.truncate(common)
        self.extend(ids[common:])
        return min(common, self.cached)

    def begin_answer(self) -> int:
        """Begin an answer, or go on with the last one → where it begins."""
        if self.answer is None:
            self.answer = len(self.ids)
        return self.answer

    def generated(self, token: int) -> None:
        """Note one more token of the answer."""
        self.ids.append(token)
        self.end = len(self.ids)

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens. UsageError when there are fewer."""
        if not 0 <= tokens <= len(self.ids):
            raise UsageError(f"cannot go back to {tokens} tokens, the context has {len(self.ids)}")
        if tokens == len(self.ids):
            return
        del self.ids[tokens:]
        if self.answer is not None and tokens < self.answer:
            self.answer = None
        self.end = min(self.end, tokens)
        if tokens < self.said:
            self.turns = self.said = 0
        del self.messages[self.turns :]
        self._take_back(tokens)

    def shift(self, first: int, newest: int) -> None:
        """Keep the ``first`` and the ``newest`` tokens only; those move up, and are run again at their new places."""
        if first + newest < len(self.ids):
            ids = self.ids[:first] + self.ids[len(self.ids) - newest :]
            self.truncate(first)
            self.extend(ids[first:])

    def lend(self, tokens: int) -> SequentialDecoder:
        """Return the decoder, empty and with room for ``tokens`` tokens, for something else; the context is rerun."""
        decoder = self.room(tokens)
        decoder.restart(self.policy)
        self._lent = True
        return decoder

    def room(self, tokens: int) -> SequentialDecoder:
        """Return the decoder, in a cache with room for ``tokens`` tokens or the whole context, with what it has run."""
        old = self.decoder
        if old is not None and self._lent:
            old.restart(self.policy)
        self._lent = False
        if old is not None and old.capacity >= min(tokens, self.most):
            return old
        if old is not None:
            tokens = max(tokens, old.capacity * GROWTH[0] // GROWTH[1])
            if not old.cached:
                old = self.decoder = None  # its cache goes before the new one comes
        new = self._make(min(self.most, -(-max(tokens, 1) // CACHE_STEP) * CACHE_STEP))
        if old is not None:
            copy_rows(old, new)
        self.decoder = new
        return new

    def prefill(self) -> tuple[F32, int]:
        """Run what has not been run → logits [1, V] behind the last token, and how many tokens that took.

        What comes before the answer is its prompt. When all were run, the last one is run again, for its logits. Where
        tokens leave early, the last one of an answer is run as one that was generated, whatever comes behind it.
        """
        decoder = self.room(len(self.ids))
        prompt = len(self.ids) if self.answer is None else self.answer
        if not decoder.sequence.saw_prompt(prompt):
            decoder.reset()
        if self.cached == len(self.ids):
            self._take_back(len(self.ids) - 1)
        begin, count = self.cached, len(self.ids)
        if begin == self.end - 1 and (self.end == count or self.policy.rule.exits_early):
            logits = decoder.step(self.ids[begin])
            if self.end == count:
                return logits, 1
        if not decoder.sequence.grows:
            decoder.reset()
            begin = 0
        return decoder.prompt(np.array(self.ids[self.cached :], np.int64), prefix=prompt), count - begin

    def fork(self, make: Callable[[int], SequentialDecoder]) -> Context:
        """Return another context that goes on from here; neither changes the other. ``make`` as in ``Context``."""
        other = Context(make, self.policy, self.most)
        other.ids, other.answer, other.end = list(self.ids), self.answer, self.end
        other.sampling = self.sampling
        other.messages, other.turns, other.said = list(self.messages), self.turns, self.said
        if self.decoder is not None and self.cached:
            copy_rows(self.decoder, other.room(len(self.ids)))
        return other

    def contents(self) -> Contents:
        """Return what is saved of it beside its rows."""
        decoder = self.room(0)
        return Contents(
            ids=np.array(self.ids, np.int64),
            state=decoder.sequence.snapshot(),
            answer=self.answer,
            end=self.end,
            messages=self.messages,
            turns=self.turns,
            said=self.said,
            sampling=self.sampling,
        )

    def restore(self, contents: Contents) -> None:
        """Go on from ``contents``, whose rows are in the cache of the decoder."""
        assert self.decoder is not None
        self.decoder.sequence.restore(contents.state)
        self.ids, self.sampling = contents.ids.tolist(), contents.sampling
        self.answer, self.end = contents.answer, contents.end
        self.messages, self.turns, self.said = contents.messages, contents.turns, contents.said

    def _take_back(self, tokens: int) -> None:
        """Make the decoder forget all but the first ``tokens`` tokens, or everything where it cannot go back there."""
        decoder = self.decoder
        if decoder is None or tokens >= self.cached:
            return
        if decoder.can_truncate(tokens):
            decoder.truncate(tokens)
        else:
            decoder.reset()


def copy_rows(source: SequentialDecoder, goal: SequentialDecoder) -> None:
    """Copy to ``goal``, which is empty, what ``source`` has run: its rows and its state."""
    state = source.sequence.snapshot()
    goal.cache.copy_sequence(
        goal.cache_sequence, source.cache, source.cache_sequence, state.cached, state.filled
    )
    goal.sequence.restore(state)
