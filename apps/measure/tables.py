"""A record as tables: for a terminal, and as Markdown that is pasted into an issue."""

from __future__ import annotations

from collections.abc import Sequence

from ..console import Console
from ..quantities import byte_count, count
from .record import Measure, Record

_SAID = ("bytes", "share", "×")
"""Units that a number is not clear without."""
COLUMNS = ("", "median", "95% interval", "mean ± sd", "repetitions")


def cell(value: float, unit: str) -> str:
    """A number with its unit, three digits or so."""
    if unit == "bytes":
        return byte_count(value)
    if unit == "tokens":
        return f"{value:.0f} tokens"
    if unit == "share":
        return f"{value:.1%}"
    if unit == "×":
        return f"{value:.2f}×"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 4
    return f"{value:.{digits}f} {unit}".rstrip()


def model(record: Record) -> str:
    """The model, in words, with the bundle's folder."""
    bundle = record.bundle
    depths = f"{bundle.depths} depths" if bundle.depths > 1 else "one depth"
    return f"{bundle.family or 'a model'} of {count(bundle.parameters)} parameters, {depths} ({bundle.name})"


def row(measure: Measure) -> tuple[str, ...]:
    """The cells of a measure, as in ``COLUMNS``."""
    found, unit = measure.value, measure.unit
    if found.count == 1:
        return (measure.name, cell(found.median, unit), "–", "–", "1")
    plain = unit if unit in _SAID else ""  # the unit stands beside the median
    return (
        measure.name,
        cell(found.median, unit),
        f"{cell(found.low, plain)} – {cell(found.high, plain)}",
        f"{cell(found.mean, plain)} ± {cell(found.sd, plain)}",
        str(found.count),
    )


def facts(record: Record) -> list[tuple[str, str]]:
    """Where, when and of what a record is."""
    machine, bundle = record.machine, record.bundle
    said = f"{bundle.scheme}, {bundle.bits} bits" + (
        f" in groups of {bundle.group_size}" if bundle.group_size else ""
    )
    load = "unknown" if record.foreign is None else f"{record.foreign:.0%} of the cores"
    if record.turns:
        load += f"; {record.disturbed} of {record.turns} turns disturbed"
    return [
        ("model", model(record)),
        ("stored", f"{byte_count(bundle.bytes)}, {said}"),
        ("engine", record.engine),
        ("settings", ", ".join(f"{key} {value}" for key, value in record.settings.items()) or "defaults"),
        ("machine", f"{machine.processor}, {machine.threads} threads, {', '.join(machine.features)}"),
        ("edgeloop", f"{record.edgeloop}, {', '.join(f'{k} {v}' for k, v in record.versions.items())}"),
        ("date", record.date),
        ("other programs", load),
    ]


def show(console: Console, record: Record) -> None:
    """The record for a terminal: a table for each group."""
    columns = tuple(name if i == 0 else f"#{name}" for i, name in enumerate(COLUMNS))
    for group, measures in _groups(record):
        console.table((group, *columns[1:]), [row(measure) for measure in measures])


def markdown(record: Record) -> str:
    """The record as Markdown: what it is of, then a table."""
    lines = [f"- {name}: {_escaped(value)}" for name, value in facts(record)]
    for group, measures in _groups(record):
        lines += ["", _line((group, *COLUMNS[1:])), "|" + "---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += [_line(row(measure)) for measure in measures]
    return "\n".join([*lines, *(f"\n{_escaped(note)}" for note in record.notes), ""])


def _groups(record: Record) -> list[tuple[str, list[Measure]]]:
    return [(name, record.group(name)) for name in dict.fromkeys(m.group for m in record.measures)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Names of files and texts of models, so that they stay in their cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
