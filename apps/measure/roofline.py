"""The roofline of a report (Williams, Waterman and Patterson, 2009): operations a second against operations a byte.

Sloping roofs are read rates, level ones are matrix rates. A point is a phase as it was measured; one that is far below
all roofs waits for something that is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, degrees
from typing import TYPE_CHECKING

from ...export.page import INK, MUTED, PAPER, SERIES, chart
from .limit import MACHINE, ROOFLINE
from .record import Measure, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADING = "Roofline"
KINDS = (("prefill", "o"), ("decode", "s"), ("block", "D"), ("prologue", "^"), ("epilogue", "v"))
"""How the name of a phase begins, and its marker."""
APART = 1.25
"""Level roofs that are nearer to each other than this factor have one label."""


def roofline(record: Record) -> list[tuple[str, str]]:
    """A heading and an inline SVG, where the record has points and roofs."""
    points, machine = record.group(ROOFLINE), record.group(MACHINE)
    reads, rates = ([each for each in machine if each.unit == unit] for unit in ("GB/s", "GOP/s"))
    if not points or not reads:
        return []

    def draw(axes: Axes) -> None:
        _draw(axes, points, _slopes(reads), [(each.value.median, each.name) for each in rates])

    return [(HEADING, chart(f"{HEADING}: GOP/s by operations a byte", draw, (4.2, 3.9)))]


def _slopes(reads: Sequence[Measure]) -> list[tuple[float, str]]:
    """The quickest read out of the cache, and the slowest of all."""
    ordered = sorted(reads, key=lambda each: each.value.median)
    ends = [ordered[-1], ordered[0]] if len(ordered) > 1 else ordered
    return [(each.value.median, f"{each.name.rpartition(' ')[2]}, {_short(each, 'GB/s')}") for each in ends]


def _draw(
    axes: Axes,
    points: Sequence[Measure],
    slopes: Sequence[tuple[float, str]],
    levels: Sequence[tuple[float, str]],
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    at = [point.at or 1.0 for point in points]
    left, right = min(at) / 2.5, max(at) * 2.5
    top = max((rate for rate, _ in levels), default=right * slopes[0][0])
    for number, (rate, said) in enumerate(slopes):
        end = min(right, top / rate)
        axes.plot([left, end], [left * rate, end * rate], color=MUTED, lw=1.4)
        x = left**0.3 * end**0.7
        beside, va = ((1.2, "bottom"), (0.85, "top"))[number]
        axes.text(
            x, beside * x * rate, said, ha="center", va=va, color=MUTED, fontsize=9,
            rotation=degrees(atan(rate)), rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip
    above = float("inf")
    for rate, said in _labels(levels):
        axes.plot([max(left, rate / slopes[0][0]), right], [rate, rate], color=MUTED, lw=1.4, ls=(0, (5, 2)))
        offset, va = (
            ((-2, -3), "top") if above < 2 * rate else ((-2, 3), "bottom")
        )  # or two labels are one blot
        axes.annotate(
            said, (right, rate), xytext=offset, textcoords="offset points",
            ha="right", va=va, color=MUTED, fontsize=9,
        )  # fmt: skip
        above = rate
    for number, (kind, marker) in enumerate(KINDS):
        own = [point for point in points if point.name.startswith(kind)]
        if own:
            x, y = [point.at or 1.0 for point in own], [point.value.median for point in own]
            said = f"{kind}, each depth" if kind == "block" and len(own) > 1 else kind
            axes.plot(x, y, ls="", marker=marker, ms=7, color=SERIES[number], mec=PAPER, mew=0.8, label=said)
    low = min(*(point.value.median for point in points), *(left * rate for rate, _ in slopes))
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low / 1.6, top * 2))
    for axis in (axes.xaxis, axes.yaxis):  # matplotlib's own writes powers as formulas
        axis.set_major_locator(LogLocator(10))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("operations a byte that is read")
    axes.set_ylabel("GOP/s")
    legend_below(axes)


def legend_below(axes: Axes) -> None:
    """A legend in three columns where no point can be."""
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=10, loc="upper center", bbox_to_anchor=(0.45, -0.2),
        ncols=3, handletextpad=0.3, columnspacing=0.9, handlelength=1.2,
    )  # fmt: skip


def _labels(levels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Level roofs, highest first; of those that are all but one the highest, with the names of all."""
    groups = list[list[tuple[float, str]]]()
    for rate, name in sorted(levels, reverse=True):
        if groups and groups[-1][0][0] < APART * rate:
            groups[-1].append((rate, name))
        else:
            groups.append([(rate, name)])
    return [
        (group[0][0], f"{', '.join(name.removeprefix('multiplying ') for _, name in group)}, {group[0][0]:.3g} GOP/s")
        for group in groups
    ]  # fmt: skip


def _short(measure: Measure, unit: str) -> str:
    return f"{measure.value.median:.3g} {unit}"
