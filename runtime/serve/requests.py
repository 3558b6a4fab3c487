"""A request, and the answer that grows token by token until something ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..decode.logprobs import TokenLogprobs, token_logprobs
from ..decode.sampling import Choose, SamplingOptions
from ..engines.backend import F32, I64
from ..model.program import Program
from ..text.tokenizer import Tokenizer

Finish = Literal["eos", "stop", "length", "context"]
"""Why an answer ended: an end-of-text token, a stop string, ``max_tokens``, a full context. The first reason counts."""


@dataclass(frozen=True)
class Request:
    """A checked prompt [S], at most ``max_tokens`` tokens to come, how they are chosen, and where they stop.

    ``logprobs``: how many of the likeliest tokens each step reports beside the chosen one; None: no log-probabilities.
    """

    prompt: I64
    max_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...]
    logprobs: int | None = None

    def room(self, context: int) -> int:
        """Return how many tokens the answer can have in a context of so many. Its last token needs no row in the
        cache."""
        return min(self.max_tokens, context - len(self.prompt) + 1)


@dataclass(frozen=True)
class Step:
    """One generated token.

    - ``text``: what it completes; it may be '' while a character or a stop string is undecided.
    - ``token``: its id.
    - ``depth``: how many depths were run for it, 1 … R.
    - ``ms``: milliseconds that it took, the first one with the prompt; of tokens that an engine made in one call the
      first has the time of all.
    - ``finish``: None while there is more to come, then why it ended: ``eos`` (an end-of-text token), ``stop`` (a stop
      string), ``length`` (``max_tokens``) or ``context`` (that is full).
    - ``logprobs``: where the request asks for them, those of the token and of the likeliest ones under the model,
      before anything that sampling changes (``logprobs.py``).
    """

    text: str
    token: int
    depth: int
    ms: float
    finish: Finish | None = None
    logprobs: TokenLogprobs | None = None


class Answer:
    """The tokens and the text of one request, by the rules of ``Session.generate``."""

    def __init__(
        self, request: Request, choose: Choose, program: Program, tokenizer: Tokenizer | None, context: int
    ) -> None:
        """``choose``: a sampler's. ``context``: tokens that prompt and answer may have, the last one not counted."""
        self._ends = program.eos_token_ids
        self._choose = choose
        prompt = request.prompt
        self._text = tokenizer.answer_text(prompt.tolist(), request.stop) if tokenizer else None
        room = request.room(context)
        self._full: Finish = "length" if room == request.max_tokens else "context"
        self._tokens = np.empty(len(prompt) + room, np.int64)
        self._tokens[: len(prompt)] = prompt
        self._length = len(prompt)
        self.finish: Finish | None = None
        """Why the last token was the last one; None while there is more to come."""
        self.logprobs: TokenLogprobs | None = None
        """Of the last token, where the request wants them."""
        self._top = request.logprobs

    @property
    def ids(self) -> I64:
        """The ids of prompt and answer, with room for what is still to come; written in place."""
        return self._tokens

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return len(self._tokens) - self._length

    @property
    def wants_logits(self) -> bool:
        """Whether the request wants log-probabilities."""
        return self._top is not None

    def choose(self, logits: F32) -> tuple[int, str]:
        """Return the next token, given logits [V], and the text that it completes."""
        token = self._choose(logits, self._tokens[: self._length], self._length)
        return token, self.take(token, logits)

    def take(self, token: int, logits: F32 | None) -> str:
        """Let ``token``, which was chosen from logits [V], be the next one → the text that it completes.

        ``logits`` may be None where the request wants no log-probabilities.
        """
        if self._top is not None:
            assert logits is not None
            self.logprobs = token_logprobs(logits, token, self._top)
        self._tokens[self._length] = token
        self._length += 1
        text = self._text.push(token) if self._text else ""
        self.finish = self._ended(token)
        if self.finish and self._text:
            text += self._text.flush()
        return text

    def _ended(self, token: int) -> Finish | None:
        if token in self._ends:
            return "eos"
        if self._text and self._text.stopped:
            return "stop"
        return self._full if self._length == len(self._tokens) else None
