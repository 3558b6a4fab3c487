"""How well a text is predicted under a policy, as generation would run it, beside full depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backend import F32, I64
from .timing import Stopwatch
from .walk import Walk


@dataclass(frozen=True)
class Evaluation:
    """A text under an exit rule, token by token, beside the same text at full depth.

    ``agreement``: share of positions where both find the same token likeliest. ``mean_depth``: depths run, 1 … R.
    ``block_share``: block rows computed ÷ (tokens × R). ``tokens_per_s`` of the token-by-token run.
    """

    perplexity: float
    full_perplexity: float
    agreement: float
    mean_depth: float
    block_share: float
    tokens: int
    tokens_per_s: float


def evaluate(stream: I64, context: int, walk: Walk, full: Walk) -> Evaluation:
    """stream [S], S ≥ 2, in disjoint windows of ``context``; both walks are on one loop, which is reset."""
    loop = walk.loop
    total = full_total = seconds = 0.0
    agree = depths = rows = tokens = 0
    for start in range(0, len(stream) - 1, context):
        targets = stream[start + 1 : start + 1 + context]
        given = stream[start : start + len(targets)]
        likeliest = np.empty(len(given), np.int64)
        loop.reset()
        for at in range(0, len(given), loop.chunk):
            part = slice(at, at + loop.chunk)
            logits = full.prompt(given[part], "all")
            likeliest[part] = logits.argmax(axis=-1)
            full_total += loss(logits, targets[part])
        loop.reset()
        loop.clock.restart()
        watch, ours = Stopwatch(), 0.0  # the time that judging takes is not the model's
        for i, (logits, ran) in enumerate(walk.every(given)):
            judging = Stopwatch()
            total += loss(logits, targets[i : i + 1])
            agree += int(logits[0].argmax() == likeliest[i])
            depths += ran
            ours += judging.ms
        seconds += (watch.ms - ours) / 1000
        rows += loop.clock.rows
        tokens += loop.clock.tokens
    n = len(stream) - 1
    return Evaluation(
        perplexity=float(np.exp(total / n)),
        full_perplexity=float(np.exp(full_total / n)),
        agreement=agree / n,
        mean_depth=depths / n,
        block_share=rows / (tokens * loop.backend.spec.depths),
        tokens=n,
        tokens_per_s=n / seconds,
    )


def loss(logits: F32, targets: I64) -> float:
    """Summed cross-entropy, in nats, of targets [S] under logits [S, V]."""
    peak = logits.max(axis=-1)
    log_sum = np.log(np.exp(logits - peak[:, None]).sum(axis=-1)) + peak
    return float((log_sum - logits[np.arange(len(targets)), targets]).sum(dtype=np.float64))
