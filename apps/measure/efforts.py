"""How much a command measures: its flags, for every mode."""

from __future__ import annotations

import argparse

from ..options import at_least, positive
from .turns import ENOUGH, Effort


def effort_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--runs``, ``--spread`` and ``--seconds``."""
    group = parser.add_argument_group("how much is measured")
    group.add_argument(
        "--runs",
        type=at_least(1),
        metavar="N",
        help=f"exactly N counted rounds (default: {ENOUGH} or more, until the spread is small or the time is up)",
    )
    group.add_argument(
        "--spread",
        type=positive("percent"),
        default=3.0,
        metavar="PERCENT",
        help="small is a 95%% interval that is narrower than this share of its median (3)",
    )
    group.add_argument(
        "--seconds",
        type=positive("seconds"),
        default=60.0,
        metavar="S",
        help="the time that rounds may take, beside warming up (60)",
    )


def effort_of(
    args: argparse.Namespace, most: int | None = None, *, warm: int = 1, rest: float = 0.0
) -> Effort:
    """What those flags say; ``most``: exactly so many rounds at most, of what needs no more."""
    runs = args.runs if most is None else min(args.runs or most, most)
    return Effort(runs, spread=args.spread / 100, seconds=args.seconds, warm=warm, rest=rest)
