"""Holds a document against the description of the trace-event format ("Trace Event Format", catapult)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

TOP = {
    "traceEvents",
    "displayTimeUnit",
    "otherData",
    "systemTraceEvents",
    "powerTraceAsString",
    "stackFrames",
    "samples",
}
"""Keys of the object form that have a meaning; traceEvents is the one that is needed."""
COMPLETE = {
    "name": str, "cat": str, "ph": str, "ts": (int, float), "dur": (int, float), "pid": int, "tid": int, "args": dict,
}  # fmt: skip
"""Fields of a complete event, all of which viewers look at."""
METADATA = {"process_name", "process_labels", "process_sort_index", "thread_name", "thread_sort_index"}


def check_trace(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the complete events; AssertionError where the document is none.

    Complete events have all fields of their types, no negative times, and lie one inside of another or apart on
    each thread. Metadata events have one of the names that there are. Threads with events have a name.
    """
    assert set(document) <= TOP
    assert document.get("displayTimeUnit") in ("ms", "ns")
    assert all(isinstance(value, str) for value in document["otherData"].values())
    found, named, threads = [], set(), defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "M":
            assert event["name"] in METADATA
            assert set(event) == {"name", "ph", "pid", "tid", "args"}
            assert isinstance(event["args"]["name"], str)
            named |= {(event["pid"], event["tid"])} if event["name"] == "thread_name" else set()
            continue
        assert event["ph"] == "X"
        assert set(event) == set(COMPLETE)
        for name, kind in COMPLETE.items():
            assert isinstance(event[name], kind), (name, event)
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        found.append(event)
        threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(threads) <= named
    for spans in threads.values():
        open_: list[float] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ and open_[-1] <= begin + 1e-3:  # microseconds are written with three places or so
                open_.pop()
            assert not open_ or end <= open_[-1] + 1e-3, "events of a thread overlap"
            open_.append(end)
    return found
