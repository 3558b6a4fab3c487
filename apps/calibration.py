"""A calibration at work: a text is run at every depth, thresholds are searched, and what they cost is measured."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Progress
from .machine import processor
from .options import pinned

if TYPE_CHECKING:
    from ..export.calibration.search import Goal
    from ..runtime.bundle.manifest import Exit
    from ..runtime.decode.evaluation import Evaluation
    from ..runtime.session import Session

RULES = ("confidence", "margin", "entropy", "kl", "latent", "probe", "gate")
MORE = ("entropy-diff", "stable")
"""Rules that are calibrated where they are asked for: their authors have one threshold for all depths and models."""
CURVE = (0.25, 0.5, 2.0, 4.0)
"""Multiples of the goal's slack that a report shows beside it."""
SMALLEST = 400  # tokens: half of them fit the probes, and thresholds need some hundreds


def said_of(args: argparse.Namespace, session: Session, tokens: int) -> dict[str, str]:
    """What thresholds were measured with, in words: for people who find them later."""
    threads = f"{args.threads} threads" if args.threads else "as many threads as pay"
    assert session.backend is not None
    text = "stdin" if args.text == "-" else Path(args.text).name
    return {
        "text": f"{text}, {tokens} tokens that nothing was fitted to",
        "engine": f"{session.backend.name}, {threads}, K/V of {args.kv_bits} bits",
        "policy": f"skipped K/V {session.policy.skipped_kv}, slots {session.policy.kv}",
        "machine": processor(),
        "date": date.today().isoformat(),
    }


def open_with(args: argparse.Namespace, rule: str) -> Session:
    """The bundle under one exit rule."""
    from ..runtime.session import Session

    return Session.open(
        args.bundle,
        engine=args.engine,
        threads=args.threads,
        cpus=pinned(args),
        kv_bits=args.kv_bits,
        context=args.context,
        verify=False,
        exit=rule,
        skipped_kv=args.skipped_kv,
    )


def request(session: Session, asked: list[str] | None, text: str, limit: int) -> tuple[list[str], list[int]]:
    """The rules and token ids to work on; UsageError when the model has nothing to calibrate."""
    program = session.program
    if program.routing is not None:
        raise UsageError(
            "this model has a router, which decides by itself; calibrate is for models without one"
        )
    if program.depths == 1:
        raise UsageError("this model has one depth: there is nothing to leave early")
    if asked and "gate" in asked and not program.exit_gate:
        raise UsageError("--rule gate: the model has no exit gate")
    rules = list(dict.fromkeys(asked or (r for r in RULES if r != "gate" or program.exit_gate)))
    ids = session.tokenizer.encode(text)[:limit]
    if len(ids) < SMALLEST:
        raise UsageError(f"the text has {len(ids)} tokens; calibration needs at least {SMALLEST}")
    return rules, ids


class Calibration:
    """The collected text, and what is fitted to it."""

    def __init__(
        self, args: argparse.Namespace, session: Session, rules: list[str], ids: list[int], goal: Goal
    ) -> None:
        import numpy as np

        from ..export.calibration.collect import collect
        from ..export.calibration.probe import fit_probes, probe_scores
        from ..export.calibration.search import DepthOutcomes
        from ..export.calibration.write import write_probes

        found = collect(session, ids, [rule for rule in rules if rule != "probe"])
        n = found.table.tokens
        fits = np.zeros(n, np.bool_)
        if "probe" in rules:
            # In turns, so that both see every part of the text; a short text has a turn each.
            stretch = session.context if n >= 4 * session.context else -(-n // 2)
            fits = np.arange(n) // stretch % 2 == 0
        self.args = args
        self.ids = np.array(ids)[:n][~fits]
        self.table = DepthOutcomes(found.table.loss[:, ~fits], found.table.agree[:, ~fits])
        self.scores = {rule: s[:, ~fits] for rule, s in found.scores.items()}
        if "probe" in rules:
            target = found.table.agree[:-1] if goal.kind == "agree" else found.kept
            probes = fit_probes(found.states[:, fits], target[:, fits])
            write_probes(args.bundle, probes.weight, probes.bias)
            self.scores["probe"] = probe_scores(found.states[:, ~fits], probes.weight, probes.bias)

    def search(self, rule: str, goal: Goal) -> tuple[float, ...]:
        """Thresholds that keep ``goal`` where leaving costs nobody else anything."""
        from ..export.calibration.search import search
        from ..runtime.decode.exits import MEASURES

        return search(self.table, self.scores[rule], MEASURES[rule].up, goal)

    def frontier(self, rule: str, goal: Goal) -> list[tuple[float, ...]]:
        """Thresholds for goals around ``goal``."""
        from ..export.calibration.search import frontier
        from ..runtime.decode.exits import MEASURES

        goals = [loosened(goal, factor) for factor in CURVE]
        return list(dict.fromkeys(frontier(self.table, self.scores[rule], MEASURES[rule].up, goals)))

    def measure(
        self, rules: Sequence[tuple[str, tuple[float, ...]]], progress: Progress = lambda step, share: None
    ) -> list[Evaluation]:
        """What was not fitted of the text, as generation would run it under each of ``rules``, side by side."""
        from ..runtime.timing import Stopwatch

        step, watch = f"measuring {len(rules)} policies side by side on {len(self.ids)} tokens", Stopwatch()
        progress(step, 0.0)
        whole = ""

        def report(share: float) -> None:
            nonlocal whole
            # From a twentieth on: the first window is of a cold engine.
            if not whole and 0.05 <= share < 1:
                whole = f", about {watch.ms / 1000 / share:.0f} s"
            progress(step + whole, share)

        with open_with(self.args, "never") as session:
            texts = (f"{rule}:{','.join(map(repr, values))}" if values else rule for rule, values in rules)
            policies = [session.choose(text, self.args.skipped_kv) for text in texts]
            return session.compare(self.ids, policies, report)

    def write(self, results: Mapping[str, Exit]) -> None:
        """Into the bundle."""
        from ..export.calibration.write import write_exits

        write_exits(self.args.bundle, results)


def keeps(found: Evaluation, goal: Goal) -> bool:
    """Return whether what was measured keeps the goal."""
    if goal.kind == "agree":
        return found.agreement >= goal.value
    return found.perplexity <= found.full_perplexity * (1 + goal.value)


def loosened(goal: Goal, factor: float) -> Goal:
    """The goal with ``factor`` times its slack."""
    if goal.kind == "agree":
        return replace(goal, value=max(0.0, 1 - (1 - goal.value) * factor))
    return replace(goal, value=goal.value * factor)
