"""``edgeloop calibrate``: exit rules for a quality goal, fitted to a text, measured, and written into the bundle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .intake import read_text
from .options import at_least, pinned, session_arguments
from .quantities import thresholds

if TYPE_CHECKING:
    from ..export.calibration.measured import Measured
    from ..export.calibration.search import Goal
    from ..runtime.bundle.manifest import Exit
    from ..runtime.decode.evaluation import Evaluation
    from ..runtime.session import Session

EXAMPLES = """\
examples:
  edgeloop calibrate bundle --text tales.txt
  edgeloop calibrate bundle --text tales.txt --agree 0.99 --rule probe --rule confidence
  edgeloop calibrate bundle --text tales.txt --perplexity +2% --skipped-kv propagate --report exits.html
"""
RULES = ("confidence", "margin", "entropy", "kl", "latent", "probe", "gate")
MORE = ("entropy-diff", "stable")
"""Rules that are calibrated where they are asked for: their authors have one threshold for all depths and models."""
TRIES = 4
CURVE = (0.25, 0.5, 2.0, 4.0)
"""Multiples of the goal's slack that a report shows beside it."""
SMALLEST = 400  # tokens: half of them fit the probes, and thresholds need some hundreds


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the text, the goal and the rules."""
    parser.description = (
        "Find the thresholds of exit rules at which a text loses no more than the goal allows, and write them into\n"
        "the bundle: `run --exit probe` then needs no number. Half of the text fits the probes, the other half\n"
        "chooses thresholds, which are then measured token by token, with the K/V that generation really has."
    )
    parser.usage = "edgeloop calibrate BUNDLE --text FILE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument(
        "--agree", metavar="X", help="goal: this share of tokens as at full depth, such as 0.99"
    )
    parser.add_argument("--perplexity", metavar="+X%", help="goal: perplexity up by this at most (+1%%)")
    parser.add_argument(
        "--rule",
        action="append",
        choices=(*RULES, *MORE),
        metavar="NAME",
        help=f"a rule; may be repeated (default: all but {', '.join(MORE)})",
    )
    parser.add_argument(
        "--skipped-kv", metavar="POLICY", help="K/V of tokens that left: exact, propagate, latest, skip"
    )
    parser.add_argument(
        "--max-tokens", type=at_least(SMALLEST), default=8192, metavar="N", help="tokens of the text (8192)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the curves to this HTML file")


def main(args: argparse.Namespace, console: Console) -> None:
    """Write the chosen thresholds into the bundle and print what each rule costs, and which missed the goal.

    UsageError for two goals, and for a report that cannot be written. Interrupted or failed, the bundle is as it was.
    """
    from ..export.bundle.writer import edited
    from ..export.calibration.report import check_report
    from ..export.calibration.search import Goal
    from ..runtime.bundle.folder import Bundle
    from ..runtime.decode.encoding import check_encoder

    if args.agree and args.perplexity:
        raise UsageError("two goals, --agree and --perplexity; give one")
    goal = Goal.agree(args.agree) if args.agree else Goal.perplexity(args.perplexity or "+1%")
    if args.report:
        check_report(args.report)
    text = read_text(args.text)
    check_encoder(Bundle.open(args.bundle, verify=False).program, args.bundle, False)
    with edited(args.bundle) as folder:  # measured there too: an interrupted calibration changes nothing
        inside = argparse.Namespace(**{**vars(args), "bundle": folder})
        with open_with(inside, "never") as session:
            rules, ids = request(session, args.rule, text, args.max_tokens)
            console.note(f"running {len(ids)} tokens at every depth")
            work = Calibration(inside, session, rules, ids, goal)
            skipped_kv = session.policy.skipped_kv
        chosen, points = {}, []
        for rule in rules:
            console.note(f"calibrating {rule}")
            chosen[rule] = work.fit(rule, goal)
            points += [(rule, values) for values in (work.frontier(rule, goal) if args.report else ())]
        console.note("measuring all of them side by side")
        full, *all_found = work.measure([("never", ()), *chosen.items(), *points])
        found = dict(zip(rules, all_found, strict=False))
        results = {rule: result(found[rule], chosen[rule], skipped_kv, goal) for rule in rules}
        work.write(results)
    missed = [rule for rule in rules if not keeps(found[rule], goal)]
    if args.report:
        curve = [measured(rule, chosen[rule], found[rule], chosen=True) for rule in rules]
        around = zip(points, all_found[len(rules) :], strict=True)
        curve += [measured(rule, values, other) for (rule, values), other in around]
        work.report(args.report, curve, full, goal, Path(args.bundle).name)
    if console.json:
        speed = {rule: found[rule].speed for rule in rules}
        console.result(
            {
                "goal": str(goal),
                "tokens_per_s": full.tokens_per_s,
                "speed": speed,
                "missed": missed,
                "exits": results,
            }
        )
        return
    columns = (
        "rule",
        "thresholds",
        "#mean depth",
        "#agreement",
        "#perplexity",
        "#change",
        "#tokens/s",
        "#speed",
    )
    rows = [row(rule, chosen[rule], found[rule]) for rule in rules]
    console.table(columns, [*rows, row("full depth", (), full)])
    console.note(f"[{full.tokens} tokens; goal {goal}; written into {args.bundle}]")
    if missed:
        console.note(f"{', '.join(missed)}: the goal was missed when measured, after {TRIES} tries")


def result(found: Evaluation, values: tuple[float, ...], skipped_kv: str, goal: Goal) -> Exit:
    """What the bundle keeps of a calibrated rule."""
    from ..runtime.bundle.manifest import Exit

    return Exit(
        thresholds=values,
        skipped_kv=skipped_kv,
        goal=str(goal),
        tokens=found.tokens,
        perplexity=found.perplexity,
        full_perplexity=found.full_perplexity,
        agreement=found.agreement,
        mean_depth=found.mean_depth,
    )


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

    def fit(self, rule: str, goal: Goal) -> tuple[float, ...]:
        """Thresholds that keep the goal when they are measured; tightened where skipped K/V cost more."""
        from ..export.calibration.search import search
        from ..runtime.decode.exits import MEASURES

        aim = goal
        for _ in range(TRIES):
            chosen = search(self.table, self.scores[rule], MEASURES[rule].up, aim)
            if keeps(self.measure([(rule, chosen)])[0], goal):
                break
            aim = loosened(aim, 0.5)
        return chosen

    def frontier(self, rule: str, goal: Goal) -> list[tuple[float, ...]]:
        """Thresholds for goals around ``goal``."""
        from ..export.calibration.search import frontier
        from ..runtime.decode.exits import MEASURES

        goals = [loosened(goal, factor) for factor in CURVE]
        return list(dict.fromkeys(frontier(self.table, self.scores[rule], MEASURES[rule].up, goals)))

    def measure(self, rules: Sequence[tuple[str, tuple[float, ...]]]) -> list[Evaluation]:
        """What was not fitted of the text, as generation would run it under each of ``rules``, side by side."""
        with open_with(self.args, "never") as session:
            texts = (f"{rule}:{','.join(map(repr, values))}" if values else rule for rule, values in rules)
            return session.compare(self.ids, [session.choose(text, self.args.skipped_kv) for text in texts])

    def write(self, results: Mapping[str, Exit]) -> None:
        """Into the bundle."""
        from ..export.calibration.write import write_exits

        write_exits(self.args.bundle, results)

    def report(self, path: Path, curve: list[Measured], full: Evaluation, goal: Goal, name: str) -> None:
        """The page."""
        from ..export.calibration.report import write_report

        base = measured("full depth", (), full)
        write_report(path, curve, base, title=f"Exit rules of {name}", goal=goal)


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


def measured(rule: str, values: tuple[float, ...], found: Evaluation, *, chosen: bool = False) -> Measured:
    """A point of the report."""
    from ..export.calibration.measured import Measured

    return Measured(
        rule=rule,
        thresholds=values,
        mean_depth=found.mean_depth,
        agreement=found.agreement,
        perplexity=found.perplexity,
        full_perplexity=found.full_perplexity,
        tokens_per_s=found.tokens_per_s,
        speed=found.speed,
        chosen=chosen,
    )


def row(rule: str, values: tuple[float, ...], found: Evaluation) -> tuple[str, ...]:
    """A line of the table."""
    return (
        rule,
        thresholds(values),
        f"{found.mean_depth:.2f}",
        f"{found.agreement:.1%}",
        f"{found.perplexity:.2f}",
        f"{found.perplexity / found.full_perplexity - 1:+.2%}",
        f"{found.tokens_per_s:.0f}",
        f"{found.speed:.2f}×",
    )
