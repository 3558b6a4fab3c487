"""The report's charts: one SVG a panel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..page import INK, MUTED, PAPER, SERIES, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .measured import Measured

Measure = Callable[["Measured"], float | None]

MARKERS = "osD^vPX"
COLOURS = len(SERIES)


def panel(
    rules: dict[str, list[Measured]],
    full: Measured,
    x: Measure,
    y: Measure,
    labels: tuple[str, str],
    *,
    line: float | None = None,
    percent: bool = False,
) -> str:
    """Return an inline ``<svg>`` of the trade between ``x`` and ``y``.

    It has a line for each rule (points where ``x`` and ``y`` are known), a star at full depth, rings at chosen
    thresholds, and with ``line`` a dashed line at the goal.
    """
    from matplotlib.ticker import PercentFormatter

    def draw(axes: Axes) -> None:
        if line is not None:
            axes.axhline(line, color=MUTED, lw=1.2, ls=(0, (4, 3)), zorder=1)
            axes.annotate(
                "goal", (1, line), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                textcoords="offset points", ha="right", color=MUTED, fontsize=10,
            )  # fmt: skip
        for number, points in enumerate(rules.values()):
            _rule(axes, points, x, y, SERIES[number % COLOURS], MARKERS[number % len(MARKERS)])
        if (at := x(full)) is not None and (height := y(full)) is not None:
            axes.plot(at, height, marker="*", ms=15, color=INK, mec=PAPER, mew=1, ls="", zorder=5)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(0.07, 0.12)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))

    return chart(f"{labels[1]} against {labels[0]}", draw)


def _rule(axes: Axes, points: Sequence[Measured], x: Measure, y: Measure, colour: str, marker: str) -> None:
    known = [(a, b, p.chosen) for p in points if (a := x(p)) is not None and (b := y(p)) is not None]
    known.sort()
    axes.plot(
        [p[0] for p in known], [p[1] for p in known], color=colour, lw=1.8, marker=marker, ms=4.5, zorder=3
    )
    for a, b, chosen in known:
        if chosen:
            axes.plot(a, b, marker=marker, ms=10, color=colour, mec=INK, mew=1.6, ls="", zorder=4)
