"""From logits to a token: logit bias, penalties, filters, and a choice that depends only on seed and position.

The order is that of transformers' ``generate`` (5.23, ``_get_logits_processor``): logit bias, repetition penalty,
presence and frequency penalty, temperature, top-k, top-p, min-p. Greedy decoding ends after the penalties.

Sampling adds Gumbel noise to the filtered logits and takes the largest, which is an exact sample of their
softmax. The noise of a position is drawn from (seed, position) alone. So sequential, pipelined and batched decoding,
and the shallow and deep depths of one token, all decide with the same noise: one seed, one text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..checks import real_number, whole_number
from ..engines.backend import F32, I64
from ..errors import EngineError, UsageError
from ..wording import shown

F64 = npt.NDArray[np.float64]
Choose = Callable[[F32, I64, int], int]
"""(logits [V], the ids before, position) → the token for that position: ``Sampler.choose``."""
KEPT = 8
"""Positions whose noise is kept: when decoding is pipelined, several depths choose a token with the same noise."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token. The defaults are greedy; UsageError names an option out of range.

    The steps apply in this order, each to what the one before has left; a value in brackets turns a step off:

    - ``logit_bias`` [{}]: token → number that is added to its logit; -inf bans it. A key is a token id, or the text
      of single tokens as they are written behind other text (``" the"``), or a special token's name.
    - ``repetition_penalty`` [1]: the logit of every id in prompt and answer is divided by it, or multiplied where
      negative (CTRL, arXiv 1909.05858).
    - ``presence_penalty`` [0] and ``frequency_penalty`` [0]: OpenAI's. The logit of a token that the answer has c > 0
      times loses presence_penalty + c · frequency_penalty; the prompt does not count.
    - ``temperature``: the logits are divided by it; 0 takes the largest and leaves out the steps below.
    - ``top_k`` [0]: only the k largest. ``top_p`` [1]: only the fewest largest whose probability reaches it.
      ``min_p`` [0]: only those at least so many times as likely as the likeliest. Equal logits stay or go together.

    ``seed``: one seed, one answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int | str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        whole_number(self.top_k, "top_k", 0)
        whole_number(self.seed, "seed", 0, 2**64 - 1)
        for name, (valid, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not valid(real_number(value, name)):
                raise UsageError(f"{name} is {value}, wanted {wanted}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def filters(self) -> bool:
        """Whether any token drops out before the choice."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalizes_answer(self) -> bool:
        """Whether it matters how often a token is in the answer."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the temperature."""
        return bool(self.logit_bias) or self.repetition_penalty != 1 or self.penalizes_answer


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: x == 0 or 1e-6 <= x < math.inf, "0 (greedy), or 0.000001 or more"),
    "top_p": (lambda x: 0 < x <= 1, "more than 0 and at most 1 (off)"),
    "min_p": (lambda x: 0 <= x <= 1, "0 (off) to 1"),
    "repetition_penalty": (lambda x: 0 < x < math.inf, "more than 0 (1 is off)"),
    "presence_penalty": (math.isfinite, "a finite number (0 is off)"),
    "frequency_penalty": (math.isfinite, "a finite number (0 is off)"),
}


def _checked_bias(bias: object) -> dict[int | str, float]:
    """Return a copy of ``logit_bias``; UsageError unless it maps ids or texts to numbers below infinity."""
    if not isinstance(bias, Mapping):
        raise UsageError(
            f"logit_bias is of type {type(bias).__name__}, wanted a mapping of tokens to numbers"
        )
    checked: dict[int | str, float] = {}
    for token, value in bias.items():
        key = token if isinstance(token, str) else whole_number(token, "a token of logit_bias", 0)
        number = real_number(value, f"logit_bias of {shown(token)}")
        if not number < math.inf:
            raise UsageError(
                f"logit_bias of {shown(token)} is {number}, wanted a finite number, or -inf to ban it"
            )
        checked[key] = number
    return checked


class Sampler:
    """Chooses tokens by ``options``. It keeps no state between calls: a choice can be repeated."""

    def __init__(self, options: SamplingOptions, start: int = 0) -> None:
        """``start``: position of the answer's first token, from which on presence and frequency penalty count.

        UsageError where keys of ``logit_bias`` are texts: ``text/logit_bias.py`` finds their ids.
        """
        self.options, self.start = options, start
        self._adjusts = options.adjusts
        if any(isinstance(token, str) for token in options.logit_bias):
            raise UsageError("logit_bias has texts where there is no tokenizer to read them; give token ids")
        self._biased = np.array(list(options.logit_bias), np.int64)
        self._bias = np.array(list(options.logit_bias.values()), np.float32)

    def choose(self, logits: F32, history: Sequence[int] | I64, position: int) -> int:
        """Return the token for ``position`` of the sequence, given logits [V] and all ids before it.

        ``logits`` is left as it is. EngineError when it holds NaN, UsageError when every token is banned.
        """
        options = self.options
        scores: F32 | F64 = self.adjusted(logits, history) if self._adjusts else logits
        if options.temperature > 0:
            scores = scores / np.float64(options.temperature)
        likeliest = int(scores.argmax())
        if not scores[likeliest] > -math.inf:  # NaN counts as the largest
            raise _no_token(logits, position)
        if options.temperature == 0:
            return likeliest
        if not options.filters:
            return int((scores + noise(options.seed, position, len(logits))).argmax())
        kept = candidates(scores, options)
        # Drawn for the whole vocabulary, so that a token's noise does not depend on the filters.
        drawn = uniform(options.seed, position, len(logits))
        return int(kept[np.argmax(scores[kept] + gumbel(drawn[kept]))])

    def adjusted(self, logits: F32, history: Sequence[int] | I64) -> F32:
        """Return a copy of logits [V] with logit bias and penalties, given all ids before them."""
        options, ids = self.options, np.asarray(history, np.int64)
        scores = logits.copy()
        scores[self._biased] += self._bias
        if options.repetition_penalty != 1:
            score = scores[ids]  # an id that comes twice gets the same value twice
            scores[ids] = np.where(
                score < 0, score * options.repetition_penalty, score / options.repetition_penalty
            )
        if options.penalizes_answer:
            seen, counts = np.unique(ids[self.start :], return_counts=True)
            scores[seen] -= options.presence_penalty + counts * options.frequency_penalty
        return scores


def _no_token(logits: F32, position: int) -> EngineError | UsageError:
    """Return the error for logits [V] of which no token can be chosen."""
    if np.isnan(logits).any():
        return EngineError(f"the logits for position {position} hold NaN; try engine reference")
    return UsageError(f"no token is left for position {position}: logit_bias bans all of them; ban fewer")


@lru_cache(maxsize=KEPT)
def noise(seed: int, position: int, size: int) -> F64:
    """Return the Gumbel noise [size] of ``position``, float64; the array is shared."""
    return gumbel(uniform(seed, position, size))


@lru_cache(maxsize=KEPT)
def uniform(seed: int, position: int, size: int) -> F64:
    """Return the uniform numbers [size] of ``position``, in [0, 1); the array is shared."""
    # The counter's lowest word counts the draws themselves: were the position there, the noise of the next
    # position would be this one's, shifted by a few tokens.
    bits = np.random.Philox(key=seed, counter=np.array([0, 0, 0, position], np.uint64))
    return np.random.Generator(bits).random(size)


def gumbel(drawn: F64) -> F64:
    """Return uniform numbers in [0, 1) as standard Gumbel noise, in the same shape."""
    noise: F64 = -np.log(-np.log(np.maximum(drawn, np.finfo(np.float64).tiny)))
    return noise


def candidates(scores: F64 | F32, options: SamplingOptions) -> I64:
    """Return the ids that top-k, top-p and min-p leave of scores [V] (logits / temperature), ascending; never none.

    Equal scores are kept or dropped together, so that the order of the vocabulary decides nothing. transformers'
    top-p may drop some of those that tie with the least likely token that it keeps.
    """
    kept: I64 = np.arange(len(scores))
    if 0 < options.top_k < len(scores):
        kth = np.partition(scores, -options.top_k)[-options.top_k]
        kept = kept[scores >= kth]
    if options.top_p < 1:
        descending: F64 = np.sort(scores[kept].astype(np.float64))[::-1]
        before = np.cumsum(softmax(descending))
        # The smallest set whose probability reaches top_p: the first place where the sum does.
        last = min(int(np.searchsorted(before, options.top_p)), len(descending) - 1)
        kept = kept[scores[kept] >= descending[last]]
    if options.min_p > 0:
        left = scores[kept]
        kept = kept[left >= left.max() + math.log(options.min_p)]
    return kept


def softmax(scores: F64 | F32) -> F64:
    """Return the softmax of scores [V], float64."""
    e: F64 = np.exp(scores.astype(np.float64) - scores.max())
    e /= e.sum()
    return e
