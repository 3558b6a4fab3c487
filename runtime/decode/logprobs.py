"""Log-probabilities of tokens under the model: of those that were chosen, of the likeliest, and of a given text.

They are the log-softmax of the logits as the model gives them, in nats: before logit bias, penalties, temperature and
filters, as vLLM reports them and as transformers' ``output_logits`` gives them. So a log-probability says what the
model thinks of a token, however it was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engines.backend import F32, I64


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability in nats."""

    token: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(TokenLogprob):
    """A token that was chosen or given, and the likeliest tokens of its position, in falling order.

    ``top`` has as many as were requested; the token itself is among them only if it is that likely.
    """

    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text: its ids, and each token's log-probability after those before it.

    The first one is None, for nothing comes before it, and so are those of a prompt.
    """

    ids: tuple[int, ...]
    tokens: tuple[TokenLogprobs | None, ...]

    @property
    def total(self) -> float:
        """The log-probability of the text given its first token, or its prompt, in nats: the sum over the others."""
        return float(sum(token.logprob for token in self.tokens if token is not None))


def token_logprobs(logits: F32, token: int, top: int) -> TokenLogprobs:
    """Return the log-probability of ``token`` under logits [V], and the ``top`` likeliest tokens (0: none)."""
    peak = logits.max()
    log_sum = float(np.log(np.exp(logits - peak, dtype=np.float64).sum())) + float(peak)
    likeliest = (TokenLogprob(int(i), float(logits[i]) - log_sum) for i in _largest(logits, top))
    return TokenLogprobs(token, float(logits[token]) - log_sum, tuple(likeliest))


def score(ids: Sequence[int] | I64, logits: F32, top: int, prompt: int = 0) -> Score:
    """Return the score of ids [S] behind the first ``prompt`` of them, given logits [S, V], of which row i predicts
    token i + 1."""
    given, first = tuple(int(i) for i in ids), max(prompt, 1)
    rest = (token_logprobs(logits[i - 1], given[i], top) for i in range(first, len(given)))
    return Score(given, (*(None,) * min(first, len(given)), *rest))


def _largest(logits: F32, count: int) -> I64:
    """Return the ids of the ``count`` largest of logits [V], in falling order; of equal ones the lowest ids."""
    if count == 0:
        return np.empty(0, np.int64)
    if count < len(logits):
        ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    else:
        ids = np.arange(len(logits))
    found: I64 = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return found
