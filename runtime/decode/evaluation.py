"""Measures how well a text is predicted under policies, as generation would run it, beside full depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from ..engines.backend import F32, I64
from ..timing import Stopwatch
from .policy import Policy
from .sequential import SequentialDecoder


@dataclass(frozen=True)
class Evaluation:
    """A text under a policy, token by token, beside the same text at full depth.

    ``agreement``: share of positions where both find the same token likeliest. ``mean_depth``: depths run, 1 … R.
    ``block_share``: block rows computed ÷ (tokens × R). ``tokens_per_s`` of the token-by-token run, the median of the
    windows. ``speed``: that against the first policy that ran beside it, the median of the windows' ratios.
    ``decision``: time of a decision to stop or go on ÷ time of a depth, with reading the logits where it needs them.
    """

    perplexity: float
    full_perplexity: float
    agreement: float
    mean_depth: float
    block_share: float
    tokens: int
    tokens_per_s: float
    speed: float
    decision: float


def evaluate(
    stream: I64,
    context: int,
    decoder: SequentialDecoder,
    policies: Sequence[Policy],
    full: Policy,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Evaluation]:
    """Return the evaluation of stream [S], S ≥ 2, in disjoint windows of ``context``, under each of ``policies``.

    ``full`` is every depth for every token. The policies take turns, window by window and each time another one
    first: a machine that is slow for a while is slow for all of them. ``progress`` hears the share of the tokens that
    are done, again and again.
    """
    tallies = [_Tally(decoder, policy) for policy in policies]
    full_total, done, all_tokens = 0.0, 0, len(policies) * (len(stream) - 1)
    for window, start in enumerate(range(0, len(stream) - 1, context)):
        targets = stream[start + 1 : start + 1 + context]
        given = stream[start : start + len(targets)]
        likeliest = np.empty(len(given), np.int64)
        decoder.restart(full)
        for at in range(0, len(given), decoder.chunk):
            part = slice(at, at + decoder.chunk)
            logits = decoder.prompt(given[part], "all", prefix=1)
            likeliest[part] = logits.argmax(axis=-1)
            full_total += loss(logits, targets[part])
        first = window % len(tallies)
        for tally in tallies[first:] + tallies[:first]:
            tally.run(given, targets, likeliest)
            done += len(given)
            progress(done / all_tokens)
    return [tally.result(full_total, tallies[0].rates) for tally in tallies]


@dataclass
class _Tally:
    """The sums of one policy over the windows."""

    decoder: SequentialDecoder
    policy: Policy
    rates: list[float] = field(default_factory=list)
    total: float = 0.0
    agree: int = 0
    depths: int = 0
    rows: int = 0
    tokens: int = 0
    decisions: int = 0
    decide_ns: int = 0
    calls: int = 0
    block_ns: int = 0

    def run(self, given: I64, targets: I64, likeliest: I64) -> None:
        """Run one window, from an empty context."""
        decoder = self.decoder
        decoder.restart(self.policy)
        decoder.clock.restart()
        watch, judged = Stopwatch(), 0.0  # the time that judging takes is not the model's
        for i, (logits, ran) in enumerate(decoder.every(given)):
            judging = Stopwatch()
            self.total += loss(logits, targets[i : i + 1])
            self.agree += int(logits[0].argmax() == likeliest[i])
            self.depths += ran
            judged += judging.ms
        self.rates.append(1000 * len(given) / (watch.ms - judged))
        clock = decoder.clock
        self.rows += clock.rows
        self.tokens += len(given)
        self.decisions += clock.decisions
        self.decide_ns += clock.decide_ns
        self.calls += sum(clock.calls)
        self.block_ns += sum(clock.block_ns)

    def result(self, full_total: float, base: list[float]) -> Evaluation:
        """Return the evaluation; ``full_total``: nats of the text at full depth; ``base``: rates of the policy to
        compare with."""
        n = self.tokens
        depth_ns = self.block_ns / max(self.calls, 1)
        return Evaluation(
            perplexity=float(np.exp(self.total / n)),
            full_perplexity=float(np.exp(full_total / n)),
            agreement=self.agree / n,
            mean_depth=self.depths / n,
            block_share=self.rows / (n * self.decoder.backend.program.depths),
            tokens=n,
            tokens_per_s=median(self.rates),
            speed=median(a / b for a, b in zip(self.rates, base, strict=True)),
            decision=self.decide_ns / self.decisions / depth_ns if self.decisions else 0.0,
        )


def loss(logits: F32, targets: I64) -> float:
    """Return the summed cross-entropy, in nats, of targets [S] under logits [S, V]."""
    peak = logits.max(axis=-1)
    log_sum = np.log(np.exp(logits - peak[:, None]).sum(axis=-1)) + peak
    return float((log_sum - logits[np.arange(len(targets)), targets]).sum(dtype=np.float64))
