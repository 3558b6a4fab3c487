"""``edgeloop bench --users``: what several users get together, of three ways to serve the same requests.

*one by one*   a session runs one request after the other, without drafts, which a server makes none of either.
*static*       plain batching: n requests start together and the next n when the longest of them has ended; each of
               their tokens waits for the deepest. It runs on the same scheduler, in calls as large as its own.
*depth-wise*   n at a time: a request starts as soon as another has ended, and where an exit rule measures, each
               token goes on for itself.

All have the same exit rule, and each is measured with the engine native and with onnx, unless one is named. The
ways take turns in every round, and rates are medians over the rounds. Requests begin as the tales that ship with
edgeloop do, and have 8 to 32 tokens and answers of 16 to 128.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from .bench_serving import BenchRequest, engines, open_engine, requests
from .console import Console
from .measure.efforts import effort_of
from .measure.outcome import Outcome
from .measure.record import Measure
from .measure.turns import Turns, disturbed, take_turns
from .options import open_session

if TYPE_CHECKING:
    from ..runtime.serve.serving import BatchServer
    from ..runtime.session import Session


Way = tuple[str, str, int]
"""Engine, kind and users of a way to serve the requests."""


@dataclass(frozen=True)
class Served:
    """Tokens that were written, the seconds that they took, and the host's time ÷ the engine's where it is known."""

    tokens: int
    seconds: float
    host: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second, of all users together."""
        return self.tokens / self.seconds


def measure_users(args: argparse.Namespace, console: Console) -> Outcome:
    """Run the comparison that ``args`` describes."""
    names = engines(args)
    with ExitStack() as opened:
        ways: dict[Way, Callable[[], Served]] = {}
        for name in names:
            session = opened.enter_context(
                open_session(argparse.Namespace(**{**vars(args), "engine": name, "decode": "sequential"}))
            )
            asked = requests(session, args.requests, seed=0)
            ways[name, "one by one", 1] = partial(alone, session, asked)
            for users in args.users:
                server = opened.enter_context(open_engine(args, name, users, len(asked)))
                for kind, size in (("static", users), ("depth-wise", len(asked))):
                    ways[name, kind, users] = _way(server, asked, size, aligned=kind == "static")
            policy = session.policy.exit
        with console.progress() as progress:
            runs = take_turns(ways, _rate, effort_of(args), progress, _name)
    rows = [_row(runs, name, users) for name in names for users in args.users]
    return Outcome(
        " and ".join(names),
        {"requests": args.requests, "runs": args.runs, "exit": policy, "users": rows},
        list(_measures(runs, names, args.users)),
        show=lambda console: _show(console, rows),
        settings={
            "users": ",".join(map(str, args.users)),
            "requests": str(args.requests),
            "exit": policy,
            **({"threads": str(args.threads)} if args.threads else {}),
        },
        turns=disturbed(list(runs.values())),
    )


def _name(way: Way) -> str:
    """A way, for people."""
    engine, kind, users = way
    return f"{engine} {kind}" + (f", {users} users" if users > 1 else "")


def _measures(runs: dict[Way, Turns[Served]], names: list[str], users: list[int]) -> Iterator[Measure]:
    for (engine, kind, n), turns in runs.items():
        value = turns.estimate(_rate)
        yield Measure(f"{engine}, {n} users, {kind}", "all users together", "tokens/s", "more", value, at=n)
    for engine, n in product(names, users):
        ours = runs[engine, "depth-wise", n]
        for kind, size in (("one by one", 1), ("static", n)):
            value = ours.over(runs[engine, kind, size], _rate)
            yield Measure(f"{engine}, {n} users, depth-wise ÷ {kind}", "depth-wise", "×", "more", value, at=n)


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    console.table(
        (
            "tokens/s",
            *("#one by one", "#static", "#depth-wise", "#÷ one by one", "#÷ static", "#host"),
        ),
        [
            (
                f"{row['engine']}, {row['users']} users",
                *(f"{row[name]:.0f}" for name in ("one_by_one", "static", "depth_wise")),
                *(f"{row[name]:.2f}×" for name in ("over_one_by_one", "over_static")),
                f"{row['host']:.1%}",
            )
            for row in rows
        ],
    )


def _way(engine: BatchServer, asked: list[BenchRequest], size: int, aligned: bool) -> Callable[[], Served]:
    own = engine.scheduler.aligned

    def serve() -> Served:
        engine.scheduler.aligned = aligned or own
        return together(engine, asked, size)

    return serve


def _row(runs: dict[Way, Turns[Served]], engine: str, users: int) -> dict[str, Any]:
    """Medians, and medians of the ratios round by round."""
    alone, static = runs[engine, "one by one", 1], runs[engine, "static", users]
    ours = runs[engine, "depth-wise", users]
    return {
        "engine": engine,
        "users": users,
        "one_by_one": alone.estimate(_rate).median,
        "static": static.estimate(_rate).median,
        "depth_wise": ours.estimate(_rate).median,
        "over_one_by_one": ours.over(alone, _rate).median,
        "over_static": ours.over(static, _rate).median,
        "host": ours.estimate(lambda served: served.host).median,
    }


def _rate(served: Served) -> float:
    return served.rate


def alone(session: Session, asked: list[BenchRequest]) -> Served:
    """One request after the other."""
    from ..runtime.timing import Stopwatch

    watch = Stopwatch()
    tokens = sum(sum(1 for _ in session.generate(r.prompt, r.tokens, r.sampling)) for r in asked)
    return Served(tokens, watch.ms / 1000)


def together(engine: BatchServer, asked: list[BenchRequest], size: int) -> Served:
    """``size`` requests at once, then the next ``size`` when all of them have ended."""
    from ..runtime.timing import Stopwatch

    scheduler = engine.scheduler
    total, inside, tokens = scheduler.total_ns, scheduler.engine_ns, 0
    watch = Stopwatch()
    for start in range(0, len(asked), size):
        handles = [engine.submit(r.prompt, r.tokens, r.sampling) for r in asked[start : start + size]]
        tokens += sum(len(handle.result().steps) for handle in handles)
    seconds = watch.ms / 1000
    inside = scheduler.engine_ns - inside
    return Served(tokens, seconds, (scheduler.total_ns - total - inside) / inside)
