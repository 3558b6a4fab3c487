"""``edgeloop bench --chat``: what each turn of a conversation costs before its first token, and a saved conversation.

A turn is so many new tokens, seeded random ones, and an answer of as many. Beside the session whose context grows, the
same conversation is read from the beginning in every turn, as a caller without a context has to. Times are medians of
``TIMES`` rounds in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .measure.outcome import Outcome
from .measure.record import Measure
from .measure.tokens import ms_of
from .measure.turns import Effort, disturbed, take_turns
from .options import at_least, open_session
from .quantities import byte_count

if TYPE_CHECKING:
    from ..runtime.session import Session
    from ..runtime.timing import GenerationStats

LONGEST = 64
"""Tokens of a turn at most, half of them the answer's; fewer where the context is short."""
TIMES = 7
"""Each is measured this often."""


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
    measures: tuple[Measure, Measure]
    disturbed: tuple[int, int]


@dataclass(frozen=True)
class Saved:
    """A saved conversation of so many tokens."""

    tokens: int
    bytes: int
    save_ms: float
    restore_ms: float
    measures: tuple[Measure, Measure]
    disturbed: tuple[int, int]


def measure_chat(args: argparse.Namespace, console: Console) -> Outcome:
    """Measure, and draw."""
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
    hidden = ("measures", "disturbed")
    every: list[ChatTurn | Saved] = [*turns, *saved]
    counts = [each.disturbed for each in every]
    return Outcome(
        engine,
        {
            "engine": engine,
            "turns": [{k: v for k, v in vars(turn).items() if k not in hidden} for turn in turns],
            "saved": [{k: v for k, v in vars(each).items() if k not in hidden} for each in saved],
        },
        [measure for each in every for measure in each.measures],
        show=lambda console: _show(console, turns, saved),
        settings={"chat": str(args.chat)},
        turns=(sum(one for one, _ in counts), sum(of for _, of in counts)),
    )


def _show(console: Console, turns: Sequence[ChatTurn], saved: Sequence[Saved]) -> None:
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
    more = np.random.default_rng(seed).integers(0, session.program.vocab_size, new)

    def go_on() -> GenerationStats:
        session.truncate(before)
        session.append(more)
        next(iter(session.generate(max_tokens=1)))
        return session.stats

    def from_empty() -> GenerationStats:
        next(iter(other.generate(session.ids[: before + new], 1)))
        return other.stats

    found = take_turns({"with a context": go_on, "from empty": from_empty}, _first_ms, Effort(TIMES, warm=0))
    list(session.generate(max_tokens=new - 1))
    grown, whole = found["with a context"], found["from empty"]
    tokens = whole.values[0].prefill_tokens
    return ChatTurn(
        tokens,
        whole.estimate(_first_ms).median,
        grown.values[0].prefill_tokens,
        grown.estimate(_first_ms).median,
        (
            Measure(
                f"turn {seed}, from empty", "first token", "ms", "less", whole.estimate(_first_ms), at=tokens
            ),
            Measure(
                f"turn {seed}, with a context",
                "first token",
                "ms",
                "less",
                grown.estimate(_first_ms),
                at=tokens,
            ),
        ),
        disturbed([whole, grown]),
    )


def _first_ms(stats: GenerationStats) -> float:
    return stats.time_to_first_token_ms


def _saved(session: Session) -> list[Saved]:
    """The conversation as it is, and half of it, saved and restored."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.session"
        for tokens in (len(session.ids), len(session.ids) // 2):
            session.truncate(tokens)
            ways = {
                "save": lambda: ms_of(lambda: session.save(file)),
                "restore": lambda: ms_of(lambda: session.restore(file)),
            }
            turns = take_turns(ways, float, Effort(TIMES, warm=0))
            save, restore = (turns[name].estimate(float) for name in ways)
            measures = (
                Measure(f"{tokens} tokens, save", "saved", "ms", "less", save, at=tokens),
                Measure(f"{tokens} tokens, restore", "saved", "ms", "less", restore, at=tokens),
            )
            size, spoilt = file.stat().st_size, disturbed(list(turns.values()))
            found.append(Saved(tokens, size, save.median, restore.median, measures, spoilt))
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
