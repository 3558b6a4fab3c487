"""What a fresh process takes: until the first token, loading included, and memory, file-backed and private apart.

    python -m edgeloop.apps.measure.startup STARTED SETUP PROMPT_TOKENS TOKENS

STARTED is the parent's monotonic clock when it started this, SETUP a ``Setup`` as JSON. *Cold*: the bundle's files
were dropped from the page cache before, where the system lets one do so; pages that another process maps stay.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.timing import Stopwatch, memory_now
from ..console import Console
from .child import run_child
from .record import Measure, Series
from .runner import Setup
from .turns import Effort, Turns, take_turns

SAMPLES = 64
"""Readings of memory while decoding, at most."""


def start(setup: Setup, prompt: int, tokens: int, cold: bool = False) -> dict[str, Any]:
    """Start a process that reads ``prompt`` tokens and writes ``tokens`` → what ``main`` says."""
    if cold:
        drop_files(Path(setup.bundle))
    said = msgspec.json.encode(setup).decode()
    words = [str(time.monotonic()), said, str(prompt), str(tokens)]
    return run_child("a fresh process", "measure.startup", words)


def drop_files(folder: Path) -> bool:
    """Drop a bundle's files from the page cache; return whether the system has such a call."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with suppress(OSError), path.open("rb") as file:
                os.fsync(file.fileno())
                advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def startup_measures(
    setup: Setup, prompt: int, tokens: int, effort: Effort
) -> tuple[list[Measure], list[Series], Turns[dict[str, Any]]]:
    """Times and memory of fresh processes, with the bundle's files in the page cache and without."""
    ways = {
        "cold": lambda: start(setup, prompt, tokens, cold=True),
        "warm": lambda: start(setup, prompt, tokens),
    }
    found = take_turns(ways, lambda one: one["first_token_ms"], effort)
    cold, warm = found["cold"], found["warm"]
    measures = [
        Measure(
            "time to first token, process and files cold", "start", "ms", "less", _of(cold, "first_token_ms")
        ),
        Measure("time to first token, process cold", "start", "ms", "less", _of(warm, "first_token_ms")),
        Measure("opening the bundle, files cold", "start", "ms", "less", _of(cold, "open_ms")),
        Measure("opening the bundle", "start", "ms", "less", _of(warm, "open_ms")),
        Measure("time to first token, warm", "start", "ms", "less", _of(warm, "again_ms")),
    ]
    if warm.values[0]["peak_bytes"]:
        names = {
            "peak": "peak_bytes",
            "steady, private": "anonymous_bytes",
            "steady, file-backed": "file_bytes",
            "before the bundle, private": "bare_anonymous_bytes",
            "before the bundle, file-backed": "bare_file_bytes",
        }
        measures += [Measure(name, "memory", "bytes", "less", _of(warm, key)) for name, key in names.items()]
    points = warm.values[-1]["memory"]
    series = [
        Series(name, "bytes", tuple((ms, row[column]) for ms, *row in points))
        for column, name in enumerate(("private", "file-backed"))
    ]
    return measures, series if points else [], warm


def _of(turns: Turns[dict[str, Any]], key: str) -> Any:
    return turns.estimate(lambda one: one[key])


def main(argv: list[str]) -> None:
    """Run ``argv``; the result is JSON."""
    started, said, prompt, tokens = float(argv[0]), argv[1], int(argv[2]), int(argv[3])
    setup = msgspec.json.decode(said, type=Setup)
    from .runner import Opened, Runner

    points: list[tuple[float, int, int]] = []

    def look() -> None:
        memory = memory_now()
        if memory is not None:
            points.append((1000 * (time.monotonic() - started), memory.anonymous, memory.file))

    bare = memory_now()
    look()
    watch = Stopwatch()
    opened = Opened.of(setup)
    runner = Runner(opened, setup, prompt + tokens + 1)
    open_ms = watch.ms
    look()
    ids = runner.text(prompt)
    runner.read(ids)
    first_token_ms = 1000 * (time.monotonic() - started)
    look()
    runner.forget()
    again_ms = runner.read(ids)
    every, written = max(1, tokens // SAMPLES), count(1)
    runner.write(tokens, lambda: None if next(written) % every else look())
    look()
    end = memory_now()
    Console(json=True).result(
        {
            "first_token_ms": first_token_ms,
            "open_ms": open_ms,
            "again_ms": again_ms,
            "peak_bytes": end and end.peak,
            "anonymous_bytes": end and end.anonymous,
            "file_bytes": end and end.file,
            "bare_anonymous_bytes": bare and bare.anonymous,
            "bare_file_bytes": bare and bare.file,
            "memory": points,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
