"""Records of ``edgeloop compare --save``: speeds of every decoder, and over that of ours with the same weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from .measure.outcome import Outcome, recorded
from .measure.record import Measure
from .measure.store import save
from .measure.turns import Turns, disturbed

T = TypeVar("T")


def save_comparison(
    args: argparse.Namespace,
    bundle: Path,
    found: Mapping[str, Turns[T]],
    bases: Mapping[str, str],
    token_ms: Callable[[T], float],
    notes: list[str],
    foreign: float | None,
) -> dict[str, str]:
    """Write the record of ``found``, turns by decoder, into ``args.save`` → where it is, for JSON; nothing without it.

    ``bundle``: ours. ``bases``: whose speed each decoder's is put beside. ``token_ms``: milliseconds a token of a turn.
    """
    if args.save is None:
        return {}
    measures = [
        Measure(
            f"decode, {name}", "decode", "tokens/s", "more",
            turns.estimate(lambda turn: 1000 / token_ms(turn)),
        )
        for name, turns in found.items()
    ]  # fmt: skip
    measures += [
        Measure(
            f"decode, {name} ÷ {bases[name]}", "decode ÷ ours", "×", "neither",
            found[bases[name]].over(turns, token_ms),
        )
        for name, turns in found.items()
        if bases[name] != name
    ]  # fmt: skip
    settings = {"prompt-tokens": str(args.prompt_tokens), "tokens": str(args.tokens)}
    if args.threads is not None:
        settings["threads"] = str(args.threads)
    outcome = Outcome(
        args.target, {}, measures, settings=settings, turns=disturbed(list(found.values())), notes=notes
    )
    name = args.checkpoint.resolve().name if args.checkpoint is not None else args.shape
    return {
        "saved": str(save(args.save, recorded("compare-with-others", bundle, outcome, foreign, name=name)))
    }
