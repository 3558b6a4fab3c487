"""``edgeloop bench --users``: what several users get together, of three ways to serve the same requests.

*one by one*   a session runs one request after the other.
*static*       plain batching: n requests start together and the next n when the longest of them has ended; each of
               their tokens waits for the deepest. It runs on the same scheduler, in calls as large as its own.
*depth-wise*   n at a time: a request starts as soon as another has ended, and where an exit rule measures, each
               token goes on for itself.

All have the same exit rule. The ways take turns in every round, and rates are medians over the rounds. Requests begin
as the tales that ship with edgeloop do, and have 8 to 32 tokens and answers of 16 to 128.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .options import at_least, depth_arguments, open_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.serve.serving import BatchServer
    from ..runtime.session import Session


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


@dataclass(frozen=True)
class Asked:
    """One request of the benchmark."""

    prompt: npt.NDArray[np.int64]
    tokens: int
    sampling: SamplingOptions | None = None


def numbers(text: str) -> list[int]:
    """An argparse type: 1,2,4."""
    values = [int(part) if part.isdigit() else 0 for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers of users with commas, as 1,2,4,8")
    return values


def minutes(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return value


def users_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``--users`` and ``--soak`` take."""
    group = parser.add_argument_group("many users")
    group.add_argument(
        "--users", type=numbers, metavar="N,N", help="compare ways to serve so many at once, as 1,2,4,8"
    )
    group.add_argument(
        "--requests", type=at_least(1, 100_000), default=24, metavar="N", help="that they share (default: 24)"
    )
    group.add_argument(
        "--soak", type=minutes, metavar="MINUTES", help="serve random requests and check every answer"
    )
    depth_arguments(parser)


def measure_users(args: argparse.Namespace, console: Console) -> None:
    """Run the comparison that ``args`` asks for, and show it."""
    with open_session(args) as session:
        asked = requests(session, args.requests, seed=0)
        ways: dict[tuple[str, int], Callable[[], Served]] = {("one by one", 1): lambda: alone(session, asked)}
        engines = []
        for users in args.users:
            engines.append(open_engine(args, users, len(asked)))
            for name, size in (("static", users), ("depth-wise", len(asked))):
                ways[name, users] = _way(engines[-1], asked, size, aligned=name == "static")
        runs: dict[tuple[str, int], list[Served]] = {way: [] for way in ways}
        with console.progress() as progress:
            for turn in range(args.runs + 1):
                for i, (way, serve) in enumerate(ways.items()):
                    progress(way[0], (turn * len(ways) + i) / ((args.runs + 1) * len(ways)))
                    served = serve()
                    runs[way] += [served] if turn else []  # the first is a warm-up
        for engine in engines:
            engine.close()
    rows = [_row(runs, users) for users in args.users]
    if console.json:
        console.result(
            {"requests": len(asked), "runs": args.runs, "exit": session.policy.exit, "users": rows}
        )
        return
    console.table(
        (
            f"tokens/s, {args.runs} rounds",
            *("#one by one", "#static", "#depth-wise", "#÷ one by one", "#÷ static", "#host"),
        ),
        [
            (
                f"{row['users']:.0f} users",
                *(f"{row[name]:.0f}" for name in ("one_by_one", "static", "depth_wise")),
                *(f"{row[name]:.2f}×" for name in ("over_one_by_one", "over_static")),
                f"{row['host']:.1%}",
            )
            for row in rows
        ],
    )


def _way(engine: BatchServer, asked: list[Asked], size: int, aligned: bool) -> Callable[[], Served]:
    own = engine.scheduler.aligned

    def serve() -> Served:
        engine.scheduler.aligned = aligned or own
        return together(engine, asked, size)

    return serve


def _row(runs: dict[tuple[str, int], list[Served]], users: int) -> dict[str, float]:
    """Medians, and medians of the ratios round by round."""
    rates = {name: [run.rate for run in runs[name, n]] for name, n in _of(users)}
    pairs = {
        f"over_{name.replace(' ', '_')}": statistics.median(
            ours / theirs for ours, theirs in zip(rates["depth-wise"], rates[name], strict=True)
        )
        for name in ("one by one", "static")
    }
    medians = {name.replace(" ", "_").replace("-", "_"): statistics.median(r) for name, r in rates.items()}
    host = statistics.median(run.host for run in runs["depth-wise", users])
    return {"users": users, **medians, **pairs, "host": host}


def _of(users: int) -> tuple[tuple[str, int], ...]:
    return ("one by one", 1), ("static", users), ("depth-wise", users)


def open_engine(args: argparse.Namespace, sequences: int, waiting: int) -> BatchServer:
    """The engine of ``args``' bundle for so many at a time."""
    from ..runtime.serve.serving import BatchServer

    return BatchServer.open(
        args.bundle,
        engine=args.engine,
        kv_bits=args.kv_bits,
        threads=args.threads,
        cpus=args.cpus,
        sequences=sequences,
        waiting=waiting,
        context=args.context,
        depth=args.depth,
        verify=False,  # the session has looked at the same files
        exit=args.exit,
        skipped_kv=args.skipped_kv,
        kv=args.kv,
        reuse=False,  # every round sends the same prompts
    )


def requests(session: Session, count: int, seed: int) -> list[Asked]:
    """``count`` requests of various lengths: beginnings from the tales, or random ids where there is no tokenizer."""
    import numpy as np

    if session.context < 2:
        raise UsageError(f"a context of {session.context} has no room for a request, wanted at least 2")
    random = np.random.default_rng(seed)
    text = tale_ids(session)
    asked = []
    for _ in range(count):
        length, tokens = int(random.integers(8, 33)), int(random.integers(16, 129))
        length = min(length, session.context - 1)
        start = int(random.integers(0, len(text) - length))
        asked.append(Asked(text[start : start + length], min(tokens, session.context - length)))
    return asked


def tale_ids(session: Session) -> npt.NDArray[np.int64]:
    """Tokens of the tales' validation text."""
    import numpy as np

    if session.tokenizer_or_none is None:
        return np.random.default_rng(0).integers(0, session.program.vocab_size, 20_000, np.int64)
    from .demo.texts import split_texts

    return np.array(session.tokenizer.encode(split_texts()[1][:60_000], special=False), np.int64)


def alone(session: Session, asked: list[Asked]) -> Served:
    """One request after the other."""
    from ..runtime.timing import Stopwatch

    watch = Stopwatch()
    tokens = sum(sum(1 for _ in session.generate(r.prompt, r.tokens, r.sampling)) for r in asked)
    return Served(tokens, watch.ms / 1000)


def together(engine: BatchServer, asked: list[Asked], size: int) -> Served:
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
