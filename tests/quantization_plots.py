"""The plots in docs/quantization.md: what codes lose against their bytes, and after each depth."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Mapping[str, Mapping[str, Any]]
INK, MUTED, GRID = "#24292f", "#57606a", "#d8dee4"
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#57606a")
MARKERS = "osD^vPX*"
"""One more than colours, so that their pairs come back late."""


def drawn(rows: Rows, floats: str) -> dict[str, str]:
    """The SVG of each plot by its name; nothing of rows of ``floats``, whatever their K/V are."""
    rows = {name: found for name, found in rows.items() if not name.startswith(floats)}
    return {"bytes": _svg(against_bytes, rows), "depths": _svg(by_depth, rows)} if rows else {}


def kinds(rows: Rows) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The rows of each kind of codes: names without the size of their groups."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        words = [word for word in name.split(", ") if not word.startswith("groups")]
        found.setdefault(", ".join(words), {})[name] = row
    return found


def against_bytes(axes: Axes, rows: Rows) -> None:
    """KL after the last depth against the bundle's size; rows of one kind are joined."""
    for number, (kind, each) in enumerate(kinds(rows).items()):
        points = sorted((row["bytes"] / 1e6, 1000 * row["divergence_per_depth"][-1]) for row in each.values())
        axes.plot(*zip(*points, strict=True), label=kind, ms=6, lw=1.4, **_style(number))
    axes.set_yscale("log")
    axes.set_xlabel("bundle, MB")
    axes.set_ylabel("KL after the last depth, 10⁻³ nats")


def by_depth(axes: Axes, rows: Rows) -> None:
    """The change of perplexity after each depth, with intervals, of rows in groups of 32 or without groups."""
    chosen = {kind: next(iter(each.values())) for kind, each in kinds(rows).items()}
    for number, (kind, row) in enumerate(chosen.items()):
        depths = [
            depth + 0.06 * (number - len(chosen) / 2) for depth in range(1, 1 + len(row["change_per_depth"]))
        ]
        half = [50 * (high - low) for low, high in row["change_interval_per_depth"]]
        means = [100 * mean for mean in row["change_per_depth"]]
        axes.errorbar(depths, means, half, label=kind, ms=5, lw=1.2, capsize=2, **_style(number))
    axes.axhline(0, color=MUTED, lw=1)
    axes.set_xticks(range(1, 1 + len(row["change_per_depth"])))
    axes.set_xlabel("depth")
    axes.set_ylabel("change of perplexity, %")


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _svg(draw: Callable[[Axes, Rows], None], rows: Rows) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": draw.__name__, "font.size": 11}):
        figure = Figure(figsize=(7.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, rows)
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=MUTED, length=0)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)
        text = io.StringIO()
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return text.getvalue()
