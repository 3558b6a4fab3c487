"""``edgeloop bench --diff OLD NEW``: what got slower or faster, as far as the spread lets anybody say so.

Two medians differ where their 95% intervals have nothing in common and they are more than a tolerance apart. Intervals
that only touch are not evidence of a change; that they do not touch is stricter than a test at 5%.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ...runtime.errors import EdgeloopError, UsageError
from ..console import Console
from .record import Measure, Record
from .store import RecordError, read_newest
from .tables import cell

TOLERANCE = 0.03
"""The change of a median that is none yet: what a machine without other work varies by from run to run."""

REPETITIONS = 3
"""Of fewer nothing is known of their spread."""

Verdict = Literal["slower", "faster", "same", "unsure"]
ORDER: tuple[Verdict, ...] = ("slower", "faster", "unsure", "same")


class SlowerError(EdgeloopError):
    """Something got slower, or larger: exit code 3, for CI."""

    exit_code = 3


@dataclass(frozen=True)
class Change:
    """A measure in both records, and what became of it. ``ratio`` is new ÷ old, with the least and the most that the
    two intervals leave room for."""

    record: str
    name: str
    unit: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


def compare(old: Record, new: Record, tolerance: float) -> Iterator[Change]:
    """What became of every measure that both records have, and of which more or less is better."""
    before = {measure.name: measure for measure in old.measures}
    for measure in new.measures:
        other = before.get(measure.name)
        if other is None or other.unit != measure.unit or measure.better == "neither":
            continue
        yield _change(new, other, measure, tolerance)


def _change(record: Record, old: Measure, new: Measure, tolerance: float) -> Change:
    a, b = old.value, new.value
    ratio, low, high = _over(b.median, a.median), _over(b.low, a.high), _over(b.high, a.low)
    apart = b.low > a.high or b.high < a.low
    verdict: Verdict = "same"
    if min(a.count, b.count) < REPETITIONS:
        verdict = "unsure"
    elif apart and abs(ratio - 1) > tolerance:
        verdict = "faster" if (ratio > 1) == (new.better == "more") else "slower"
    label = f"{record.bundle.name}, {record.engine}, {record.mode}"
    return Change(label, new.name, new.unit, a.median, b.median, ratio, low, high, verdict)


def _over(a: float, b: float) -> float:
    return a / b if b else (1.0 if a == b else float("inf"))


def paired(
    old: Mapping[tuple[str, ...], Record], new: Mapping[tuple[str, ...], Record]
) -> list[tuple[Record, Record]]:
    """Records of the same kind. One file against another: those, if they are of the same mode."""
    if len(old) == len(new) == 1:
        (a,), (b,) = old.values(), new.values()
        if a.mode != b.mode:
            raise UsageError(
                f"a record of {a.mode} and one of {b.mode} have nothing in common; give two of one mode"
            )
        return [(a, b)]
    pairs = [(old[kind], record) for kind, record in new.items() if kind in old]
    if not pairs:
        raise UsageError(
            "no record of NEW is of the same mode, bundle, engine and flags as one of OLD; measure both alike"
        )
    return pairs


def report_diff(places: tuple[Path, Path], tolerance: float, console: Console) -> None:
    """Compare the records at two places and print it; SlowerError when something got slower."""
    for place in places:
        if not place.exists():
            raise RecordError(f"there is no record {place}; `edgeloop bench --save FOLDER` writes them")
    pairs = paired(*(read_newest(place) for place in places))
    changes = [change for pair in pairs for change in compare(*pair, tolerance)]
    others = sorted(
        {
            f"{a.machine.processor}, {a.machine.threads} threads / {b.machine.processor}, {b.machine.threads} threads"
            for a, b in pairs
            if (a.machine.processor, a.machine.threads) != (b.machine.processor, b.machine.threads)
        }
    )
    worse = [change for change in changes if change.verdict == "slower"]
    if console.json:
        counts: dict[str, object] = {verdict: sum(c.verdict == verdict for c in changes) for verdict in ORDER}
        console.result(
            {**counts, "tolerance": tolerance, "machines": others, "changes": [asdict(c) for c in changes]}
        )
    else:
        for label in dict.fromkeys(change.record for change in changes):
            rows = sorted((c for c in changes if c.record == label), key=lambda c: ORDER.index(c.verdict))
            console.table(
                (label, "#old", "#new", "#new ÷ old", "#from – to", "verdict"),
                [_row(change) for change in rows],
            )
        for line in others:
            console.note(f"the machines differ: {line}")
    if worse:
        worst = max(worse, key=lambda c: abs(c.ratio - 1))
        raise SlowerError(
            f"{len(worse)} of {len(changes)} measures got slower or larger, {worst.name} most: "
            f"{worst.ratio:.2f} × what it was"
        )


def _row(change: Change) -> tuple[str, ...]:
    return (
        change.name,
        cell(change.old, change.unit),
        cell(change.new, change.unit),
        f"{change.ratio:.3f}×",
        f"{change.low:.3f} – {change.high:.3f}",
        change.verdict,
    )
