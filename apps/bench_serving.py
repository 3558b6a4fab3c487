"""What the benchmarks of many users share: their arguments, the engines that are measured, and random requests."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .options import at_least, depth_arguments, positive

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.serve.serving import BatchServer
    from ..runtime.session import Session


@dataclass(frozen=True)
class BenchRequest:
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


def users_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``--users`` and ``--soak`` take."""
    group = parser.add_argument_group("many users")
    group.add_argument(
        "--users", type=numbers, metavar="N,N", help="compare ways to serve N users at once, such as 1,2,4,8"
    )
    group.add_argument(
        "--requests", type=at_least(1, 100_000), default=24, metavar="N", help="requests of all users (24)"
    )
    group.add_argument(
        "--soak",
        type=positive("minutes"),
        metavar="MINUTES",
        help="serve random requests and check every answer",
    )
    group.add_argument(
        "--max-stall",
        type=positive("milliseconds"),
        metavar="MS",
        help="most that prompts may add to the time between two tokens (default: prompts in chunks of 32 tokens)",
    )
    group.add_argument(
        "--kv-limit",
        type=positive("megabytes"),
        metavar="MB",
        help="most memory for the K/V of all requests, in 10^6 bytes (default: what the engine takes)",
    )
    depth_arguments(parser)


def engines(args: argparse.Namespace) -> list[str]:
    """The engines that are measured: the one that is named, or all that serve many users of the bundle here."""
    from ..runtime.bundle.folder import Bundle
    from ..runtime.engines.table import ENGINES, usual_engine

    if args.engine:
        return [args.engine]
    bundle = Bundle.open(args.bundle)
    both = [name for name in ("native", "onnx") if ENGINES[name].runs(bundle)]
    return [name for name in both if not ENGINES[name].unavailable_reason()] or [usual_engine(bundle)]


def open_engine(
    args: argparse.Namespace, engine: str, sequences: int, waiting: int, reuse: bool | None = False
) -> BatchServer:
    """Engine ``engine`` with ``args``' bundle, for so many at a time.

    ``reuse``: by default none, since every round of a comparison sends the same prompts.
    """
    from ..runtime.serve.serving import BatchServer

    return BatchServer.open(
        args.bundle,
        engine=engine,
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
        reuse=reuse,
        max_stall=args.max_stall,
        kv_limit=round(args.kv_limit * 1e6) if args.kv_limit else None,
    )


def requests(session: Session, count: int, seed: int) -> list[BenchRequest]:
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
        asked.append(BenchRequest(text[start : start + length], min(tokens, session.context - length)))
    return asked


def tale_ids(session: Session) -> npt.NDArray[np.int64]:
    """Tokens of the tales' validation text."""
    import numpy as np

    if session.tokenizer_or_none is None:
        return np.random.default_rng(0).integers(0, session.program.vocab_size, 20_000, np.int64)
    from .demo.texts import split_texts

    return np.array(session.tokenizer.encode(split_texts()[1][:60_000], special=False), np.int64)
