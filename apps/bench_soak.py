"""``edgeloop bench --soak``: random requests come, go and are cancelled; each answer is held against its lone run.

The requests are drawn from a pool whose answers a session has written before, one by one. They arrive in bursts with
pauses between them, more than the engine takes, so that some are refused. At the end no lane may be lost.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ..runtime.errors import BusyError, EngineError
from .bench_users import Asked, open_engine, requests
from .console import Console
from .options import open_session
from .quantities import byte_count

if TYPE_CHECKING:
    from ..runtime.serve.handle import Handle
    from ..runtime.serve.serving import BatchServer

Tokens = tuple[int, ...]
POOL, SEQUENCES, WAITING = 40, 4, 8
EQUAL = {"none", "int8-channel"}
"""Quantizations with which an answer among others is that of a lone run, token for token."""


def soak(args: argparse.Namespace, console: Console) -> None:
    """Run for ``args.soak`` minutes and show it; EngineError for lost lanes, and answers that must not differ."""
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.timing import rss_bytes

    with open_session(args) as session:
        pool = requests(session, POOL, seed=1)
        choices = [SamplingOptions(temperature=0.9 * (i % 2), seed=i) for i in range(POOL)]
        pool = [replace(asked, sampling=options) for asked, options in zip(pool, choices, strict=True)]
        wanted = [
            tuple(step.token for step in session.generate(r.prompt, r.tokens, r.sampling)) for r in pool
        ]
        scheme = session.bundle.manifest.quantization.scheme
    with open_engine(args, SEQUENCES, WAITING) as engine, console.progress() as progress:
        counts: Counter[str] = Counter()
        live: list[tuple[int, Handle]] = []
        random_ = random.Random(0)
        warm, before = min(0.2, args.soak / 5), 0
        start = time.monotonic()
        while (minutes := (time.monotonic() - start) / 60) < args.soak:
            progress("soaking", minutes / args.soak)
            if not before and minutes > warm:  # every size of call was made by then
                before = rss_bytes() or 0
            _burst(engine, pool, live, counts, random_)
            live = [pair for pair in live if not _ended(*pair, wanted, counts)]
            time.sleep(random_.expovariate(20))
        for pair in live:
            pair[1].result()
            _ended(*pair, wanted, counts)
        after = rss_bytes() or 0
        end = time.monotonic() + 5
        while engine.scheduler.tasks and time.monotonic() < end:  # the last one is being put away
            time.sleep(0.01)
        free = len(engine.pool.free)
    if free != SEQUENCES:
        raise EngineError(
            f"{SEQUENCES - free} of {SEQUENCES} lanes were lost; this is a bug, please report it"
        )
    if console.json:
        console.result(
            {
                "minutes": args.soak,
                **{name: counts[name] for name in ("served", "same", "cancelled", "refused", "tokens")},
                "rss_before_bytes": before,
                "rss_after_bytes": after,
                "lanes_free": free,
                "lanes": SEQUENCES,
            }
        )
    else:
        _tell(args, console, counts, (before, after, warm), free)
    compared = counts["served"] + counts["cancelled"]
    if counts["same"] == compared:
        return
    if scheme in EQUAL:
        raise EngineError(
            f"{compared - counts['same']} of {compared} answers differ from those of a lone run, which those of a "
            f"{scheme} bundle must not; this is a bug, please report it"
        )
    console.note(
        "integer kernels round one row otherwise than several; a float bundle (--quant none) has no such excuse"
    )


def _tell(
    args: argparse.Namespace,
    console: Console,
    counts: Counter[str],
    memory: tuple[int, int, float],
    free: int,
) -> None:
    """What happened, for people. ``memory``: bytes after a warm-up and at the end, and the warm-up's minutes."""
    before, after, warm = memory
    console.facts(
        [
            ("served", f"{counts['served']} requests, {counts['tokens']} tokens in {args.soak:g} minutes"),
            (
                "as alone",
                f"{counts['same']} of {counts['served'] + counts['cancelled']}, cancelled ones so far as they went",
            ),
            ("cancelled", str(counts["cancelled"])),
            ("refused", f"{counts['refused']}, because the queue was full"),
            ("memory", f"{byte_count(before)} after {60 * warm:.0f} s, {byte_count(after)} at the end"),
            ("lanes", f"{free} of {SEQUENCES} free"),
        ]
    )


def _burst(
    engine: BatchServer,
    pool: list[Asked],
    live: list[tuple[int, Handle]],
    counts: Counter[str],
    numbers: random.Random,
) -> None:
    """Some requests more, and sometimes one fewer."""
    for _ in range(numbers.choice((0, 1, 1, 2, 6))):
        which = numbers.randrange(len(pool))
        asked = pool[which]
        try:
            live.append((which, engine.submit(asked.prompt, asked.tokens, asked.sampling)))
        except BusyError:
            counts["refused"] += 1
    if live and numbers.random() < 0.2:
        numbers.choice(live)[1].cancel()


def _ended(which: int, handle: Handle, wanted: list[Tokens], counts: Counter[str]) -> bool:
    """Count a request that has ended, and compare it."""
    if not handle.done:
        return False
    found = handle.result()
    alone = wanted[which][: len(found.tokens)] if found.cancelled else wanted[which]
    counts["cancelled" if found.cancelled else "served"] += 1
    counts["tokens"] += len(found.tokens)
    counts["same"] += found.tokens == alone
    return True
