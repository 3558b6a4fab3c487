"""Collects what every depth of a model predicts for every token of a text, in one run at full depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.decode.exits import MEASURES, Outcome, kl
from ...runtime.errors import UsageError
from ...runtime.session import Session
from .search import DepthOutcomes

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Collected:
    """The outcomes of a text at every depth, and the scores of rules.

    ``scores[rule]`` [R−1, N] of the rules requested, the table, and for probes the first carry [R−1, N, D] and
    ``kept`` [R−1, N], exp(−KL) from full depth's prediction to each depth's.
    """

    table: DepthOutcomes
    scores: Mapping[str, F32]
    states: F32
    kept: F32


def collect(session: Session, ids: Sequence[int], rules: Sequence[str]) -> Collected:
    """Run ``ids`` [S] at full depth; the N = S − 1 tokens that have a next one are judged.

    UsageError for a text of fewer than 2 tokens.
    """
    program, n = session.program, len(ids) - 1
    seen = program.loop.carries[0].width
    if n < 1:
        raise UsageError(f"the text has {len(ids)} tokens; calibration needs some hundreds")
    depths = program.depths
    targets = np.asarray(ids[1:])
    loss, likeliest = np.empty((depths, n), np.float32), np.empty((depths, n), np.int64)
    scores = {rule: np.empty((depths - 1, n), np.float32) for rule in rules}
    states = np.empty((depths - 1, n, seen), np.float32)
    kept = np.empty((depths - 1, n), np.float32)
    chain: list[Outcome] = []

    def visit(depth: int, start: int, before: F32, state: F32, logits: F32) -> None:
        before, state = before[:, :seen], state[:, :seen]
        keep = min(len(state), n - start)
        if keep <= 0:
            return
        if depth == 0:
            chain[:] = [Outcome(-1, before)]
        chain.append(Outcome(depth, state, logits.copy(), chain[-1]))
        rows = slice(start, start + keep)
        peak = logits.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[:, 0]
        picked = logits[np.arange(keep), targets[rows]]
        loss[depth, rows] = log_sum[:keep] - picked
        likeliest[depth, rows] = logits[:keep].argmax(axis=-1)
        if depth < depths - 1:
            states[depth, rows] = state[:keep]
            for rule, found in scores.items():
                # Rounding takes a divergence below 0, where no threshold is taken.
                score = MEASURES[rule].score(chain[-1], session.heads)[:keep]
                found[depth, rows] = np.clip(score, *MEASURES[rule].wants)
            return
        for early in chain[1:-1]:
            divergence = kl(Outcome(depth, state, early.logits, chain[-1]), {})
            kept[early.depth, rows] = np.exp(-np.maximum(divergence[:keep], 0))

    session.visit_depths(ids, visit)
    return Collected(DepthOutcomes(loss, likeliest == likeliest[-1]), scores, states, kept)
