"""From logits to a token: penalties, filters, and a choice that depends on nothing but seed and position.

Sampling adds Gumbel noise to the filtered logits and takes the largest, which is an exact sample of their
softmax. The noise of a position is drawn from (seed, position) alone. So sequential and pipelined decoding,
and the shallow and deep depths of one token, all decide with the same dice: one seed, one text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..checks import real_number, whole_number
from ..errors import EngineError, UsageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Choose = Callable[[F32, I64, int], int]
"""(logits [V], the ids before, position) → the token for that position: ``Sampler.choose``."""
KEPT = 8
"""Positions whose noise is kept: when decoding is pipelined, several depths choose a token with the same dice."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token. The defaults are greedy; UsageError names an option out of range.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off. The filters apply in
    that order after the temperature, each on what the one before has left.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number(self.top_k, "top_k", 0)
        whole_number(self.seed, "seed", 0, 2**64 - 1)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            real_number(getattr(self, name), name)
        ranges = (
            (
                "temperature",
                self.temperature == 0 or 1e-6 <= self.temperature < math.inf,
                "0 (greedy), or 0.000001 or more",
            ),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0 (1 is off)"),
        )
        for name, valid, wanted in ranges:
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)}, wanted {wanted}")

    @property
    def filters(self) -> bool:
        """Does any token drop out before the choice?"""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Sampler:
    """Chooses tokens by ``options``. It has no state: a choice can be repeated."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options

    def choose(self, logits: F32, history: Sequence[int] | I64, position: int) -> int:
        """The token for ``position`` of the sequence, given logits [V] and the ids before it.

        ``logits`` is left as it is. EngineError when it holds NaN.
        """
        options = self.options
        scores: F32 | F64 = logits
        if options.repetition_penalty != 1:
            scores = penalize(logits, history, options.repetition_penalty)
        if options.temperature > 0:
            scores = scores / np.float64(options.temperature)
        likeliest = int(scores.argmax())
        if math.isnan(scores[likeliest]):  # NaN counts as the largest
            raise EngineError(f"the logits for position {position} hold NaN; try engine reference")
        if options.temperature == 0:
            return likeliest
        if not options.filters:
            return int((scores + noise(options.seed, position, len(logits))).argmax())
        kept = candidates(scores, options)
        # Drawn for the whole vocabulary, so that a token's noise does not depend on the filters.
        dice = uniform(options.seed, position, len(logits))
        return int(kept[np.argmax(scores[kept] + gumbel(dice[kept]))])


@lru_cache(maxsize=KEPT)
def noise(seed: int, position: int, size: int) -> F64:
    """The Gumbel noise [size] of ``position``; the array is shared."""
    return gumbel(uniform(seed, position, size))


@lru_cache(maxsize=KEPT)
def uniform(seed: int, position: int, size: int) -> F64:
    """The dice [size] of ``position``, in [0, 1); the array is shared."""
    # The counter's lowest word counts the draws themselves: were the position there, the noise of the next
    # position would be this one's, shifted by a few tokens.
    bits = np.random.Philox(key=seed, counter=np.array([0, 0, 0, position], np.uint64))
    return np.random.Generator(bits).random(size)


def gumbel(dice: F64) -> F64:
    """Uniform numbers as Gumbel noise."""
    noise: F64 = -np.log(-np.log(np.maximum(dice, np.finfo(np.float64).tiny)))
    return noise


def penalize(logits: F32, history: Sequence[int] | I64, penalty: float) -> F32:
    """A copy of logits [V] in which every id of ``history`` is less likely by ``penalty`` (CTRL's rule)."""
    scores = logits.copy()
    if len(history):
        seen = np.unique(np.asarray(history, np.int64))
        score = scores[seen]
        scores[seen] = np.where(score < 0, score * penalty, score / penalty)
    return scores


def candidates(scores: F64 | F32, options: SamplingOptions) -> I64:
    """The ids that the filters leave, ascending; never none. ``scores`` [V] are logits / temperature.

    Equal scores are kept or dropped together, so that the order of the vocabulary decides nothing.
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
    """Softmax of scores [V], float64."""
    e: F64 = np.exp(scores.astype(np.float64) - scores.max())
    e /= e.sum()
    return e
