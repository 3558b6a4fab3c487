"""What is asked of a model: a request, and the answer that grows token by token until something ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backend import F32, I64
from .sampling import Choose, SamplingOptions
from .spec import Spec
from .text.stops import StopMatcher
from .text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """A checked prompt [S], at most ``max_tokens`` tokens to come, how they are chosen, and where they stop."""

    prompt: I64
    max_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...]


class Answer:
    """The tokens and the text of one request, by the same rules as ``Session.generate``."""

    def __init__(
        self, request: Request, choose: Choose, spec: Spec, tokenizer: Tokenizer | None, context: int
    ) -> None:
        """``choose``: a sampler's. ``context``: tokens of prompt and answer together, the last one not counted."""
        self._ends = spec.eos_token_ids
        self._context = context
        self._choose = choose
        self._stops = StopMatcher(request.stop)
        self._detokenizer = tokenizer.detokenizer() if tokenizer else None
        self._tokens = np.empty(len(request.prompt) + request.max_tokens, np.int64)
        self._tokens[: len(request.prompt)] = request.prompt
        self._length = len(request.prompt)
        self.ended = False
        """Was the last token the last one?"""

    def choose(self, logits: F32) -> tuple[int, str]:
        """The next token, given logits [V], and the text that it completes."""
        position = self._length
        token = self._choose(logits, self._tokens[:position], position)
        self._tokens[position] = token
        self._length += 1
        text = self._stops.push(self._detokenizer.push(token) if self._detokenizer else "")
        self.ended = (
            self._stops.matched
            or token in self._ends
            or self._length == len(self._tokens)
            or position == self._context
        )
        if self.ended:
            text += self._stops.push(self._detokenizer.flush() if self._detokenizer else "")
            text += self._stops.flush()
        return token, text


def as_stops(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings, checked as StopMatcher does; one string is one of them."""
    StopMatcher(stop)
    return (stop,) if isinstance(stop, str) else tuple(stop)
