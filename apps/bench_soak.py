"""``edgeloop bench --soak``: random requests come, go and are cancelled; each answer is held against its lone run.

The requests are drawn from a pool whose answers a session has written before, one by one. They arrive in bursts with
pauses between them, more than the engine takes, so that some are refused. At the end no lane may be lost.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..runtime.errors import BusyError, EngineError
from .bench_serving import BenchRequest, engines, open_engine, requests
from .console import Console
from .measure.interval import estimate
from .measure.outcome import Outcome
from .measure.record import Measure
from .options import open_session
from .quantities import byte_count

if TYPE_CHECKING:
    from ..runtime.serve.handle import Handle
    from ..runtime.serve.serving import BatchServer

Tokens = tuple[int, ...]
POOL, SEQUENCES, WAITING, CLIENTS = 40, 4, 8, 3
EQUAL = {"none", "int8-channel"}
"""Quantizations with which an answer among others is that of a lone run, token for token, with every engine."""


def soak(args: argparse.Namespace, console: Console) -> Outcome:
    """Run for ``args.soak`` minutes with each engine. Lost lanes, and answers that must not differ, are its fault."""
    found = [_soak(argparse.Namespace(**{**vars(args), "engine": name}), console) for name in engines(args)]
    notes, fault = list[str](), None
    for each in found:
        different = each.counts["served"] + each.counts["cancelled"] - each.counts["same"]
        if each.free != SEQUENCES:
            fault = fault or EngineError(
                f"{SEQUENCES - each.free} of {SEQUENCES} lanes of engine {each.engine} were lost; this is a bug, "
                "please report it"
            )
        if different and each.equal:
            fault = fault or EngineError(
                f"{different} answers of engine {each.engine} differ from those of a lone run, which they must not "
                "with this bundle; this is a bug, please report it"
            )
        elif different:
            notes.append(
                f"{each.engine}: integer kernels round one row otherwise than several; a float bundle (--quant none) "
                "has no such excuse"
            )
    return Outcome(
        " and ".join(each.engine for each in found),
        {"minutes": args.soak, "engines": [_numbers(each) for each in found]},
        [measure for each in found for measure in _measures(each)],
        show=lambda console: _show(args, console, found),
        settings={"soak": f"{args.soak:g}"},
        notes=notes,
        fault=fault,
    )


def _show(args: argparse.Namespace, console: Console, found: list[Soaked]) -> None:
    for each in found:
        _tell(args, console, each)


def _measures(found: Soaked) -> list[Measure]:
    grown = found.after - found.before
    return [
        Measure(f"{found.engine}, memory at the end", "memory", "bytes", "less", estimate([found.after])),
        Measure(f"{found.engine}, memory that it grew by", "memory", "bytes", "neither", estimate([grown])),
        *(
            Measure(
                f"{found.engine}, {name}", "requests", "requests", "neither", estimate([found.counts[name]])
            )
            for name in ("served", "same", "cancelled", "refused")
        ),
    ]


@dataclass(frozen=True)
class Soaked:
    """What happened with ``engine``: counts of requests and tokens, memory after a warm-up of ``warm`` minutes and at
    the end, lanes that are free then; and whether answers must be those of lone runs."""

    engine: str
    counts: Counter[str]
    before: int
    after: int
    warm: float
    free: int
    equal: bool


def _soak(args: argparse.Namespace, console: Console) -> Soaked:
    """Soak ``args.engine``."""
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.engines.table import ENGINES
    from ..runtime.timing import rss_bytes

    with open_session(args) as session:
        pool = requests(session, POOL, seed=1)
        choices = [SamplingOptions(temperature=0.9 * (i % 2), seed=i) for i in range(POOL)]
        pool = [replace(asked, sampling=options) for asked, options in zip(pool, choices, strict=True)]
        wanted = [
            tuple(step.token for step in session.generate(r.prompt, r.tokens, r.sampling)) for r in pool
        ]
        exact = ENGINES[args.engine].can.row_exact
        equal = exact or session.bundle.manifest.quantization.scheme in EQUAL
    # Where answers do not depend on it, prompts of the pool that come again are not prefilled again.
    with (
        open_engine(args, args.engine, SEQUENCES, WAITING, reuse=exact) as engine,
        console.progress() as progress,
    ):
        counts: Counter[str] = Counter()
        live: list[tuple[int, Handle]] = []
        random_ = random.Random(0)
        warm, before = min(0.2, args.soak / 5), 0
        start = time.monotonic()
        while (minutes := (time.monotonic() - start) / 60) < args.soak:
            progress(f"soaking {args.engine}", minutes / args.soak)
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
        return Soaked(args.engine, counts, before, after, warm, len(engine.pool.free), equal)


def _numbers(found: Soaked) -> dict[str, object]:
    return {
        "engine": found.engine,
        **{name: found.counts[name] for name in ("served", "same", "cancelled", "refused", "tokens")},
        "rss_before_bytes": found.before,
        "rss_after_bytes": found.after,
        "lanes_free": found.free,
        "lanes": SEQUENCES,
    }


def _tell(args: argparse.Namespace, console: Console, found: Soaked) -> None:
    """What happened, for people."""
    counts = found.counts
    console.facts(
        [
            ("engine", found.engine),
            ("served", f"{counts['served']} requests, {counts['tokens']} tokens in {args.soak:g} minutes"),
            (
                "as alone",
                f"{counts['same']} of {counts['served'] + counts['cancelled']}, cancelled ones so far as they went",
            ),
            ("cancelled", str(counts["cancelled"])),
            ("refused", f"{counts['refused']}, because the queue was full"),
            (
                "memory",
                f"{byte_count(found.before)} after {60 * found.warm:.0f} s, {byte_count(found.after)} at the end",
            ),
            ("lanes", f"{found.free} of {SEQUENCES} free"),
        ]
    )


def _burst(
    engine: BatchServer,
    pool: list[BenchRequest],
    live: list[tuple[int, Handle]],
    counts: Counter[str],
    numbers: random.Random,
) -> None:
    """Some requests more, and sometimes one fewer."""
    for _ in range(numbers.choice((0, 1, 1, 2, 6))):
        which = numbers.randrange(len(pool))
        asked = pool[which]
        try:
            handle = engine.submit(
                asked.prompt, asked.tokens, asked.sampling, client=numbers.randrange(CLIENTS)
            )
            live.append((which, handle))
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
