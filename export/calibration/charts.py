"""The report's charts: one SVG a panel, drawn by matplotlib in colours that are the page's own variables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .measured import Measured

Measure = Callable[["Measured"], float | None]

MARKERS = "osD^vPX"
COLOURS = 7
_INK, _MUTED, _GRID, _PAPER = "#010101", "#010102", "#010103", "#010104"
_NAMES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _PAPER: "paper"}
"""The colours that matplotlib draws with, and the page's CSS variables that replace them."""
_SERIES = [f"#01020{i}" for i in range(COLOURS)]


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
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": " ".join(labels), "font.size": 11}):
        figure = Figure(figsize=(4.2, 3.3), layout="constrained")
        axes = figure.add_subplot()
        if line is not None:
            axes.axhline(line, color=_MUTED, lw=1.2, ls=(0, (4, 3)), zorder=1)
            axes.annotate(
                "goal", (1, line), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                textcoords="offset points", ha="right", color=_MUTED, fontsize=10,
            )  # fmt: skip
        for number, points in enumerate(rules.values()):
            _rule(axes, points, x, y, _SERIES[number % COLOURS], MARKERS[number % len(MARKERS)])
        if (at := x(full)) is not None and (height := y(full)) is not None:
            axes.plot(at, height, marker="*", ms=15, color=_INK, mec=_PAPER, mew=1, ls="", zorder=5)
        axes.set_xlabel(labels[0], color=_MUTED)
        axes.set_ylabel(labels[1], color=_MUTED)
        axes.margins(0.07, 0.12)
        axes.grid(color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GRID)
        axes.tick_params(colors=_MUTED, length=0)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), f"{labels[1]} against {labels[0]}")


def _rule(axes: Axes, points: Sequence[Measured], x: Measure, y: Measure, colour: str, marker: str) -> None:
    known = [(a, b, p.chosen) for p in points if (a := x(p)) is not None and (b := y(p)) is not None]
    known.sort()
    axes.plot(
        [p[0] for p in known], [p[1] for p in known], color=colour, lw=1.8, marker=marker, ms=4.5, zorder=3
    )
    for a, b, chosen in known:
        if chosen:
            axes.plot(a, b, marker=marker, ms=10, color=colour, mec=_INK, mew=1.6, ls="", zorder=4)


def _inline(svg: str, title: str) -> str:
    """Return ``svg`` without its XML head, with the page's colours and font, and only the ids that are referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for colour, name in [*_NAMES.items(), *((c, f"series{i}") for i, c in enumerate(_SERIES))]:
        svg = svg.replace(colour, f"var(--{name})")
    return svg
