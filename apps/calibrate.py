"""``edgeloop calibrate``: exit rules for a quality goal, fitted to a text, measured, and written into the bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .calibration import MORE, RULES, SMALLEST, Calibration, keeps, loosened, open_with, request, said_of
from .console import Console
from .intake import read_text
from .options import at_least, session_arguments
from .quantities import thresholds

if TYPE_CHECKING:
    from ..export.calibration.measured import Measured
    from ..export.calibration.search import Goal
    from ..runtime.bundle.manifest import Exit
    from ..runtime.decode.evaluation import Evaluation

EXAMPLES = """\
examples:
  edgeloop calibrate bundle --text tales.txt
  edgeloop calibrate bundle --text tales.txt --agree 0.99 --rule probe --rule confidence
  edgeloop calibrate bundle --text tales.txt --perplexity +2% --skipped-kv propagate --report exits.html
"""
TRIES = 4


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
    parser.add_argument("--force", action="store_true", help="with --report: replace a FILE that is there")


def main(args: argparse.Namespace, console: Console) -> None:
    """Write the chosen thresholds into the bundle and print what each rule costs, and which missed the goal.

    UsageError for two goals, and for a report that cannot be written. Interrupted or failed, the bundle is as it was.
    """
    from ..export.bundle.writer import edited
    from ..export.calibration.report import check_report, write_report
    from ..export.calibration.search import Goal
    from ..runtime.bundle.folder import Bundle
    from ..runtime.decode.encoding import check_encoder
    from ..runtime.timing import Stopwatch

    if args.agree and args.perplexity:
        raise UsageError("two goals, --agree and --perplexity; give one")
    goal = Goal.agree(args.agree) if args.agree else Goal.perplexity(args.perplexity or "+1%")
    if args.report:
        check_report(args.report, args.force)
    text = read_text(args.text)
    check_encoder(Bundle.open(args.bundle, verify=False).program, args.bundle, False)
    watch = Stopwatch()
    # Measured there too: an interrupted calibration changes nothing.
    with edited(args.bundle) as folder, console.progress() as progress:
        inside = argparse.Namespace(**{**vars(args), "bundle": folder})
        with open_with(inside, "never") as session:
            rules, ids = request(session, args.rule, text, args.max_tokens)
            progress(f"running {len(ids)} tokens at every depth", 0.0)
            work = Calibration(inside, session, rules, ids, goal)
            skipped_kv, facts = session.policy.skipped_kv, said_of(args, session, len(work.ids))
        aims = dict.fromkeys(rules, goal)
        chosen = {rule: work.search(rule, goal) for rule in rules}
        points = [(rule, v) for rule in rules if args.report for v in work.frontier(rule, goal)]
        full, *all_found = work.measure([("never", ()), *chosen.items(), *points], progress)
        found, around = dict(zip(rules, all_found, strict=False)), all_found[len(rules) :]
        for _ in range(TRIES - 1):
            # The table says what tokens lose that leave; only running says what their K/V then cost the others.
            if not (again := [rule for rule in rules if not keeps(found[rule], goal)]):
                break
            aims |= {rule: loosened(aims[rule], 0.5) for rule in again}
            chosen |= {rule: work.search(rule, aims[rule]) for rule in again}
            _, *more = work.measure([("never", ()), *((rule, chosen[rule]) for rule in again)], progress)
            found |= dict(zip(again, more, strict=True))
        results = {rule: result(found[rule], chosen[rule], skipped_kv, goal) for rule in rules}
        work.write(results)
    missed = [rule for rule in rules if not keeps(found[rule], goal)]
    if args.report:
        curve = [measured(rule, chosen[rule], found[rule], chosen=True) for rule in rules]
        curve += [measured(rule, values, one) for (rule, values), one in zip(points, around, strict=True)]
        title = f"Exit rules of {Path(args.bundle).name}"
        base = measured("full depth", (), full)
        write_report(args.report, curve, base, title=title, goal=goal, facts=facts)
    if console.json:
        speed = {rule: found[rule].speed for rule in rules}
        console.result(
            {
                "goal": str(goal),
                "tokens_per_s": full.tokens_per_s,
                "speed": speed,
                "missed": missed,
                "exits": results,
                "measured_with": facts,
                "seconds": watch.ms / 1000,
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
    console.note(f"[{full.tokens} tokens; goal {goal}; {watch.ms / 1000:.0f} s; written into {args.bundle}]")
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
