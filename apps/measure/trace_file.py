"""Calls and operators in the trace-event format, which Perfetto and Chrome's about:tracing open.

The format: "Trace Event Format", a document of Chromium's catapult project. Complete events (``ph`` X) have a
name, a category, ``ts`` and ``dur`` in microseconds, and a process and a thread; events of one thread are nested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...export.page import write_page
from .calls import StageCall
from .operators import Operator

PROCESS = 1
THREADS = {"stages": 1, "operators": 2}


def write_trace(
    path: Path, calls: Sequence[StageCall], operators: Sequence[Operator], facts: dict[str, str]
) -> None:
    """Write ``path`` in one rename. ``facts`` (bundle, engine, machine …) are its metadata."""
    document = {
        "traceEvents": [*_names(), *_events(calls, operators)],
        "displayTimeUnit": "ms",
        "otherData": facts,
    }
    write_page(path, msgspec.json.encode(document).decode())


def _names() -> Iterator[dict[str, Any]]:
    """Metadata: how the process and its threads are called."""
    yield {"name": "process_name", "ph": "M", "pid": PROCESS, "tid": 0, "args": {"name": "edgeloop"}}
    for name, number in THREADS.items():
        yield {"name": "thread_name", "ph": "M", "pid": PROCESS, "tid": number, "args": {"name": name}}


def _events(calls: Sequence[StageCall], operators: Sequence[Operator]) -> Iterator[dict[str, Any]]:
    start = calls[0].begin_ns
    for call in calls:
        yield {
            "name": call.name,
            "cat": "stage",
            "ph": "X",
            "ts": (call.begin_ns - start) / 1000,
            "dur": call.ns / 1000,
            "pid": PROCESS,
            "tid": THREADS["stages"],
            "args": {"tokens": call.tokens},
        }
    for one in operators:
        call = calls[one.call]
        yield {
            "name": one.kind,
            "cat": "operator",
            "ph": "X",
            "ts": (call.begin_ns - start) / 1000 + one.begin_us,
            "dur": one.us,
            "pid": PROCESS,
            "tid": THREADS["operators"],
            "args": {"stage": call.name} | ({} if one.layer is None else {"layer": one.layer + 1}),
        }
