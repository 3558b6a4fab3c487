"""The charts of a report: which groups of a record are drawn, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...export.page import INK, MUTED, SERIES, chart
from ..quantities import byte_count
from .record import Measure, Record
from .roofline import legend_below, roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 24
"""Of a chart: more are in the table below it."""
MOST_LETTERS = 34
"""Of a label."""

Panel = tuple[str, str]
"""A heading and an inline SVG."""


def panels(record: Record) -> list[Panel]:
    """Every chart that the record has numbers for."""
    return [panel for draw in DRAWN for panel in draw(record)]


def _against_context(record: Record) -> list[Panel]:
    """Tokens a second of prompts, and behind so many tokens."""
    decode, prefill = record.group("decode"), record.group("prefill")
    found = []
    if len(decode) > 1:
        found.append(_lines("Decoding behind so many tokens", {"": decode}, "tokens", "tokens/s"))
    if len(prefill) > 1:
        lines: dict[str, list[Measure]] = {}
        for measure in prefill:
            lines.setdefault(measure.name.partition(" behind ")[2], []).append(measure)
        named = {f"behind {behind or 0}" if len(lines) > 1 else "": each for behind, each in lines.items()}
        found.append(_lines("Reading a prompt of so many tokens", named, "tokens", "tokens/s"))
    return found


def _depths(record: Record) -> list[Panel]:
    """Milliseconds of the block at each depth, and of a token that stops there."""
    found = []
    if stages := record.group("a token by stages, ms"):
        found.append(_bars("A token, stage by stage", stages, "ms a token"))
    if len(blocks := record.group("each depth, ms")) > 1:
        found.append(_bars("Each depth while decoding", blocks, "ms"))
    if len(stopped := record.group("depth, ms")) > 1:
        found.append(
            _lines(
                "A token that stops after so many depths", {"": stopped}, "depths", "ms a token", whole=True
            )
        )
    return found


def _exits(record: Record) -> list[Panel]:
    """How many tokens ran how deep, and what quality costs."""
    counts = record.group("tokens by depth")
    found = [_histogram("Tokens by depth", counts, _colours(record))] if counts else []
    if len(record.group("perplexity, as calibrated")) > 1:
        found.append(_quality(record))
    return found


def _memory(record: Record) -> list[Panel]:
    """Memory of a fresh process over time."""
    if not record.series:
        return []
    drawn = [series for series in record.series if series.unit == "bytes"]

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        for number, series in enumerate(drawn):
            ms, values = zip(*series.points, strict=True)
            axes.step(ms, values, where="post", color=SERIES[number], lw=1.8, label=series.name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_count(value)))
        axes.set_xlabel("ms since the process started")
        _legend(axes)

    heading = "Memory of a fresh process"
    return [(heading, chart(heading, draw))]


def _operators(record: Record) -> list[Panel]:
    """Operators, those that take most first."""
    measures = sorted(record.group("operators, ms a token"), key=lambda m: -m.value.median)
    return [_bars("Operators by time", measures, "ms a token")] if measures else []


def _ratios(record: Record) -> list[Panel]:
    """Every group of ratios, with a line at 1."""
    groups = dict.fromkeys(m.group for m in record.measures if m.unit == "×")
    return [_bars(_heading(group), record.group(group), "×", line=1.0) for group in groups]


def _others(record: Record) -> list[Panel]:
    """What other modes measure: dots with their intervals."""
    return [
        _bars(heading, record.group(group), unit)
        for group, heading, unit in (
            ("all users together", "All users together", "tokens/s"),
            ("decoding", "Ways to decode", "tokens/s"),
            ("first token", "Until the first token of an answer", "ms"),
            ("ms a call", "Kinds of operators", "ms a call"),
        )
        if record.group(group)
    ]


DRAWN: tuple[Callable[[Record], list[Panel]], ...] = (
    _against_context, _depths, _exits, _operators, roofline, _ratios, _others, _memory,
)  # fmt: skip


def _heading(group: str) -> str:
    return group[:1].upper() + group[1:]


def _lines(
    heading: str, lines: Mapping[str, Sequence[Measure]], x: str, y: str, whole: bool = False
) -> Panel:
    """Medians with their intervals, from zero; a legend where lines have names."""

    def draw(axes: Axes) -> None:
        at: list[float] = []
        for number, (name, measures) in enumerate(lines.items()):
            at = [measure.at or 0.0 for measure in measures]
            medians, errors = _errors(measures)
            colour = SERIES[number % len(SERIES)]
            axes.errorbar(at, medians, errors, color=colour, marker="o", ms=5, lw=1.8, capsize=3, label=name)
        if any(lines):
            _legend(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if whole:
            axes.set_xticks(at)

    return heading, chart(f"{heading}: {y} by {x}", draw)


def _bars(heading: str, measures: Sequence[Measure], unit: str, line: float | None = None) -> Panel:
    """A bar for each, from the top; its interval on it."""
    shown = measures[:MOST_BARS]

    def draw(axes: Axes) -> None:
        medians, errors = _errors(shown)
        rows = range(len(shown))
        axes.barh(
            rows, medians, xerr=errors, color=SERIES[0], height=0.62, error_kw={"ecolor": INK, "capsize": 2}
        )
        axes.set_yticks(rows, labels([measure.name for measure in shown]))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        if line is not None:
            axes.axvline(line, color=MUTED, lw=1.2, ls=(0, (4, 3)))

    return heading, chart(f"{heading}, {unit}", draw, (4.2, max(1.6, 0.85 + 0.27 * len(shown))))


def _colours(record: Record) -> dict[str, str]:
    """A colour for each exit rule, the same in every chart: in the order in which the record has them."""
    groups = ("tokens by depth", "perplexity, as calibrated")
    rules = dict.fromkeys(m.name.partition(":")[0] for m in record.measures if m.group in groups)
    return {rule: SERIES[number % len(SERIES)] for number, rule in enumerate(rules)}


def _histogram(heading: str, measures: Sequence[Measure], colours: Mapping[str, str]) -> Panel:
    """Bars of all rules side by side at each depth, as shares of their tokens."""
    rules: dict[str, dict[int, float]] = {rule: {} for rule in colours}
    for measure in measures:
        rules.setdefault(measure.name.partition(": depth")[0], {})[int(measure.at or 0)] = (
            measure.value.median
        )
    rules = {rule: found for rule, found in rules.items() if found}

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        depths = range(1, 1 + max(max(found) for found in rules.values()))
        wide = 0.8 / len(rules)
        for number, (rule, found) in enumerate(rules.items()):
            at = [depth - 0.4 + wide * (number + 0.5) for depth in depths]
            shares = [found.get(depth, 0.0) / sum(found.values()) for depth in depths]
            axes.bar(at, shares, wide * 0.92, color=colours[rule], label=_short(rule))
        axes.set_xticks(depths)
        axes.set_xlabel("depths that a token ran")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(visible=False, axis="x")
        if len(rules) > 1:
            legend_below(axes)

    return heading, chart(heading, draw, (4.2, 3.9))


def _quality(record: Record) -> Panel:
    """Perplexity as it was calibrated against the speed that was measured now."""
    quality = {m.name.partition(":")[0]: m.value.median for m in record.group("perplexity, as calibrated")}
    speed = {m.name.removeprefix("a token, "): 1000 / m.value.median for m in record.group("exit, ms")}
    colours = _colours(record)
    known = [name for name in colours if name in quality and name in speed]

    def draw(axes: Axes) -> None:
        for name in known:
            axes.plot(
                speed[name],
                quality[name],
                marker="o",
                ms=8,
                ls="",
                color=colours[name],
                label=name,
            )
        axes.set_xlabel("tokens/s, measured")
        axes.set_ylabel("perplexity, as calibrated")
        axes.margins(0.15)
        legend_below(axes)

    heading = "Quality against speed"
    return heading, chart(heading, draw, (4.2, 3.9))


def _errors(measures: Sequence[Measure]) -> tuple[list[float], tuple[list[float], list[float]]]:
    values = [measure.value for measure in measures]
    low, high = [v.median - v.low for v in values], [v.high - v.median for v in values]
    return [v.median for v in values], (low, high)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)


def labels(names: Sequence[str]) -> list[str]:
    """``names`` as a chart has room for: where one is too long, without the words at their ends and then at their
    beginnings that all have in common, so that what is left tells them apart."""
    words = [name.split(" ") for name in names]
    for end in (-1, 0):
        while max(len(" ".join(each)) for each in words) > MOST_LETTERS:
            if len({each[end] for each in words}) > 1 or min(map(len, words)) == 1:
                break
            for each in words:
                each.pop(end)
    return [_short(" ".join(each).rstrip(" ÷,")) for each in words]


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[:20]} … {name[-11:]}"
