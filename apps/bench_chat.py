"""``edgeloop bench --chat``: what each turn of a conversation costs before its first token, and a saved conversation.

A turn is so many new tokens, seeded random ones, and an answer of as many. Beside the session whose context grows, the
same conversation is read from the beginning in every turn, as a caller without a context has to. Times are the shortest
of ``TIMES``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from ..runtime.timing import Stopwatch
from .console import Console
from .options import at_least, open_session
from .quantities import byte_count

if TYPE_CHECKING:
    from ..runtime.session import Session
    from ..runtime.timing import GenerationStats

LONGEST = 64
"""Tokens of a turn at most, half of them the answer's; fewer where the context is short."""
TIMES = 7
"""Each is measured this often, and the shortest is reported: other programs may use the computer, too."""


def chat_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    group = parser.add_argument_group("conversations")
    group.add_argument(
        "--chat",
        type=at_least(2),
        metavar="TURNS",
        help="time the prefill of each turn of a conversation, with and without a context, and saving it",
    )
    group.add_argument("--svg", type=Path, metavar="FILE", help="with --chat: draw it, too")


@dataclass(frozen=True)
class ChatTurn:
    """What came before a turn's first token: tokens of the prompt and milliseconds, whole and with a context."""

    prompt: int
    whole_ms: float
    grown: int
    grown_ms: float


@dataclass(frozen=True)
class Saved:
    """A saved conversation of so many tokens."""

    tokens: int
    bytes: int
    save_ms: float
    restore_ms: float


def measure_chat(args: argparse.Namespace, console: Console) -> None:
    """Measure, print, and draw."""
    with open_session(args) as session:
        new = min(LONGEST, session.context // args.chat) // 2
        if new < 2:
            raise UsageError(f"{args.chat} turns in a context of {session.context} tokens; choose fewer")
        with console.progress() as progress:
            turns = []
            with session.fork() as other:
                for number in range(args.chat + 1):
                    progress("talking", number / (args.chat + 1))
                    if number < 2:  # the first one warms the engine up
                        session.reset()
                    turns += [_turn(session, other, new, number)][: number > 0]
            saved = _saved(session)
        engine = session.backend.name if session.backend else ""
    if args.svg is not None:
        args.svg.write_text(drawing(turns), encoding="utf-8")
    if console.json:
        console.result({"engine": engine, "turns": turns, "saved": saved})
        return
    console.table(
        ("turn", "#tokens", "#ms from empty", "#new tokens", "#ms with a context"),
        [
            (str(i), str(t.prompt), f"{t.whole_ms:.1f}", str(t.grown), f"{t.grown_ms:.1f}")
            for i, t in enumerate(turns, 1)
        ],
    )
    console.table(
        ("saved", "#size", "#save ms", "#restore ms"),
        [
            (f"{s.tokens} tokens", byte_count(s.bytes), f"{s.save_ms:.1f}", f"{s.restore_ms:.1f}")
            for s in saved
        ],
    )


def _turn(session: Session, other: Session, new: int, seed: int) -> ChatTurn:
    """One turn more on ``session``; ``other`` reads all of it."""
    import numpy as np

    before = len(session.ids)
    whole: list[GenerationStats] = []
    grown: list[GenerationStats] = []
    more = np.random.default_rng(seed).integers(0, session.program.vocab_size, new)
    for _ in range(TIMES):
        session.truncate(before)
        session.append(more)
        ids = session.ids
        for each, steps, found in (
            (other, other.generate(ids, 1), whole),
            (session, session.generate(max_tokens=1), grown),
        ):
            next(iter(steps))
            found.append(each.stats)
    list(session.generate(max_tokens=new - 1))
    return ChatTurn(
        whole[0].prefill_tokens,
        min(stats.time_to_first_token_ms for stats in whole),
        grown[0].prefill_tokens,
        min(stats.time_to_first_token_ms for stats in grown),
    )


def _saved(session: Session) -> list[Saved]:
    """The conversation as it is, and half of it, saved and restored: the quickest of ``TIMES``."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.session"
        for tokens in (len(session.ids), len(session.ids) // 2):
            session.truncate(tokens)
            save, restore = [], []
            for _ in range(TIMES):
                watch = Stopwatch()
                session.save(file)
                save.append(watch.lap_ms())
                session.restore(file)
                restore.append(watch.lap_ms())
            found.append(Saved(tokens, file.stat().st_size, min(save), min(restore)))
    return found[::-1]


def drawing(turns: list[ChatTurn]) -> str:
    """Milliseconds before the first token, over the turns, as SVG."""
    width, height, left, bottom = 640, 280, 56, 40
    most = max(max(t.whole_ms, t.grown_ms) for t in turns) * 1.08

    def place(number: int, ms: float) -> str:
        x = left + (width - left - 130) * number / max(len(turns) - 1, 1)
        return f"{x:.1f},{height - bottom - (height - bottom - 24) * ms / most:.1f}"

    lines = []
    for label, colour, values in (
        ("from empty", "#c0504d", [t.whole_ms for t in turns]),
        ("with a context", "#3a76af", [t.grown_ms for t in turns]),
    ):
        points = [place(i, ms) for i, ms in enumerate(values)]
        x, y = points[-1].split(",")
        lines.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{float(x) + 8:.0f}" y="{float(y) + 4:.0f}" fill="{colour}">{label}</text>'
        )
    for part in (0.0, 0.5, 1.0):
        y = place(0, part * most / 1.08).split(",")[1]
        lines.append(
            f'<text x="{left - 8}" y="{float(y) + 4:.0f}" text-anchor="end">{part * most / 1.08:.0f}</text>'
        )
    for number in {0, len(turns) // 2, len(turns) - 1}:
        x = place(number, 0).split(",")[0]
        lines.append(f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">{number + 1}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#555"><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{left}" y="14">milliseconds before the first token of an answer</text>'
        f'<text x="{(left + width - 130) // 2}" y="{height - 6}" text-anchor="middle">turn</text>'
        + "".join(sorted(lines))
        + "</svg>\n"
    )
