"""``edgeloop bench --compare A B``: bundles, engines, policies, ways to decode or commits, in turns, with ratios.

All contenders read and write the same tokens. They are open in one process; where one is a commit, each turn is a
process of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ...runtime.bundle.folder import Bundle
from ...runtime.decode.encoding import check_encoder
from ...runtime.errors import UsageError
from ..console import Console, Progress
from .child import run_process
from .commits import checked_out, environment
from .efforts import effort_of
from .outcome import Outcome
from .record import Measure
from .runner import Opened, Runner, Setup, Wrote
from .setups import Contender, contender_of_words
from .tables import cell
from .turns import Turns, disturbed, take_turns

Found = dict[str, Turns[Wrote]]
Contenders = Mapping[str, Contender]
Figures = Mapping[str, Callable[[Wrote], float]]
TURN = Path(__file__).with_name("turn.py")
REST = 0.1
"""Seconds before a turn where engines differ: a thread pool that has just worked spins for some 60 ms."""


def measure_versus(args: argparse.Namespace, console: Console) -> Outcome:
    """Measure the contenders that ``args`` names."""
    contenders = {text: contender_of_words(text, args) for text in args.compare}
    if len(contenders) < 2 or len(contenders) != len(args.compare):
        raise UsageError(f"--compare {' '.join(args.compare)}: wanted two or more contenders that differ")
    prompt, tokens = args.prompt_tokens, args.tokens
    apart = any(each.commit is not None for each in contenders.values())
    take = _in_processes if apart else _in_one_process
    with console.progress() as progress:
        found, engines = take(contenders, args, progress)
    base, figures = next(iter(found)), _figures(prompt)
    measures = [*_speeds(found, figures, prompt, tokens), *_ratios(found, figures, base)]
    return Outcome(
        " and ".join(sorted(engines)),
        {"contenders": list(found), "base": base, "tokens": tokens, "prompt_tokens": prompt},
        measures,
        show=lambda console: _show(console, found, measures, base),
        settings={"compare": " / ".join(found), "prompt-tokens": str(prompt), "tokens": str(tokens)},
        turns=disturbed(list(found.values())),
        bundle=contenders[base].setup.bundle,
    )


def _in_one_process(
    contenders: Contenders, args: argparse.Namespace, progress: Progress
) -> tuple[Found, set[str]]:
    """Turns of runners that are all open, and the names of their engines."""
    prompt, tokens = args.prompt_tokens, args.tokens
    opened, runners = {}, {}
    for text, contender in contenders.items():
        opened[text] = Opened.of(contender.setup)
        _check_context(opened[text].bundle, prompt + tokens)
        runners[text] = Runner(opened[text], contender.setup, prompt + tokens)
    few = min(runner.vocabulary for runner in runners.values())
    ids = next(runner for runner in runners.values() if runner.vocabulary == few).text(prompt)
    engines = {each.backend.name for each in opened.values()}
    found = take_turns(
        {text: partial(runner.run, ids, tokens) for text, runner in runners.items()},
        lambda wrote: wrote.token_ms,
        effort_of(args, rest=REST * (len(engines) > 1)),
        progress,
    )
    return found, engines


def _in_processes(
    contenders: Contenders, args: argparse.Namespace, progress: Progress
) -> tuple[Found, set[str]]:
    """Turns of processes, one a turn, each of the commit that it is of."""
    prompt, tokens, engines = args.prompt_tokens, args.tokens, set[str]()
    bundles = [Bundle.open(each.setup.bundle).at_depth(each.setup.depth) for each in contenders.values()]
    for bundle in bundles:
        check_encoder(bundle.program, str(bundle.folder), False)
        _check_context(bundle, prompt + tokens)
    ids = np.random.default_rng(0).integers(0, min(b.program.vocab_size for b in bundles), prompt, np.int64)
    numbers = (msgspec.json.encode(ids.tolist()).decode(), str(tokens))

    def turn(text: str, place: Path | None) -> Wrote:
        command = [sys.executable, "-P", str(TURN), _said(contenders[text].setup), *numbers]
        one = run_process(text, command, environment(place) if place else {})
        engines.add(one["engine"])
        return Wrote(one["prefill"], tuple(one["tokens"]), (), 0.0, Counter(), None)

    revisions = [each.commit for each in contenders.values() if each.commit is not None]
    native = any(each.setup.engine in (None, "native") for each in contenders.values())
    with checked_out(list(dict.fromkeys(revisions)), native, lambda step, _: progress(step, 0.0)) as places:
        found = take_turns(
            {
                text: partial(turn, text, None if each.commit is None else places[each.commit])
                for text, each in contenders.items()
            },
            lambda wrote: wrote.token_ms,
            effort_of(args),
            progress,
        )
    return found, engines


def _said(setup: Setup) -> str:
    """What ``turn.py`` is given of it: the bundle, and what is not as ever, which an older commit may not know."""
    usual = asdict(Setup(setup.bundle))
    given = {name: value for name, value in asdict(setup).items() if value != usual[name]}
    return msgspec.json.encode({**given, "bundle": str(Path(setup.bundle).resolve())}).decode()


def _check_context(bundle: Bundle, tokens: int) -> None:
    context = bundle.program.context_length
    if tokens > context:
        raise UsageError(
            f"{tokens} tokens, and the context of {bundle.folder} is {context}: choose fewer "
            "--prompt-tokens and --tokens"
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
