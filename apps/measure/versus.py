"""``edgeloop bench --compare A B``: bundles, engines, policies or ways to decode, in turns, with ratios.

All contenders are open in one process, and read and write the same tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

from ...runtime.errors import UsageError
from ..console import Console
from .efforts import effort_of
from .outcome import Outcome
from .record import Measure
from .runner import Opened, Runner, Wrote
from .setups import setup_of_words
from .tables import cell
from .turns import Turns, disturbed, take_turns

Found = dict[str, Turns[Wrote]]
Figures = Mapping[str, Callable[[Wrote], float]]
REST = 0.1
"""Seconds before a turn where engines differ: a thread pool that has just worked spins for some 60 ms."""


def measure_versus(args: argparse.Namespace, console: Console) -> Outcome:
    """Measure the contenders that ``args`` names."""
    setups = {text: setup_of_words(text, args) for text in args.compare}
    if len(setups) < 2 or len(setups) != len(args.compare):
        raise UsageError(f"--compare {' '.join(args.compare)}: wanted two or more contenders that differ")
    prompt, tokens = args.prompt_tokens, args.tokens
    opened, runners = {}, {}
    for text, setup in setups.items():
        opened[text] = Opened.of(setup)
        context = opened[text].bundle.program.context_length
        if prompt + tokens > context:
            raise UsageError(
                f"{prompt + tokens} tokens, and the context of {setup.bundle} is {context}: choose fewer "
                "--prompt-tokens and --tokens"
            )
        runners[text] = Runner(opened[text], setup, prompt + tokens)
    few = min(runner.vocabulary for runner in runners.values())
    ids = next(runner for runner in runners.values() if runner.vocabulary == few).text(prompt)
    engines = {each.backend.name for each in opened.values()}
    with console.progress() as progress:
        found = take_turns(
            {text: partial(runner.run, ids, tokens) for text, runner in runners.items()},
            lambda wrote: wrote.token_ms,
            effort_of(args, rest=REST * (len(engines) > 1)),
            progress,
        )
    base, figures = next(iter(found)), _figures(prompt)
    measures = [*_speeds(found, figures, prompt, tokens), *_ratios(found, figures, base)]
    return Outcome(
        " and ".join(sorted(engines)),
        {"contenders": list(found), "base": base, "tokens": tokens, "prompt_tokens": prompt},
        measures,
        show=lambda console: _show(console, found, measures, base),
        settings={"compare": " / ".join(found), "prompt-tokens": str(prompt), "tokens": str(tokens)},
        turns=disturbed(list(found.values())),
        bundle=setups[base].bundle,
    )


def _figures(prompt: int) -> Figures:
    """Tokens a second."""
    return {
        "prefill": lambda wrote: 1000 * prompt / wrote.prefill,
        "decode": lambda wrote: 1000 / wrote.token_ms,
    }


def _speeds(found: Found, figures: Figures, prompt: int, tokens: int) -> list[Measure]:
    return [
        Measure(
            f"{kind}, {text}", f"{kind}, {prompt if kind == 'prefill' else tokens} tokens", "tokens/s", "more",
            turns.estimate(figures[kind]),
        )
        for kind in figures
        for text, turns in found.items()
    ]  # fmt: skip


def _ratios(found: Found, figures: Figures, base: str) -> list[Measure]:
    """Speeds over the first contender's, turn by turn."""
    return [
        Measure(
            f"{kind}, {text} ÷ {base}", f"{kind} ÷ {base}", "×", "more",
            turns.over(found[base], figures[kind]),
        )
        for kind in figures
        for text, turns in found.items()
        if text != base
    ]  # fmt: skip


def _show(console: Console, found: Found, measures: list[Measure], base: str) -> None:
    by_name = {measure.name: measure.value for measure in measures}
    rows = []
    for text in found:
        cells = [text]
        for kind in ("prefill", "decode"):
            speed, ratio = by_name[f"{kind}, {text}"], by_name.get(f"{kind}, {text} ÷ {base}")
            cells += [cell(speed.median, ""), f"{ratio.median:.3f}×" if ratio else "1"]
            cells.append(f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio else "")
        rows.append(tuple(cells))
    console.table(("tokens/s", "#prefill", "#÷ the first", "#95%", "#decode", "#÷ the first", "#95%"), rows)
