"""The drift of several models as one SVG: error with its bound, where it comes from, and what is read out."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import UsageError
from .measure import DepthDrift, Drift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[DepthDrift], float | None]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart."""
MARKERS = "osD^vPX"
_FEW = 16
"""Depths that are drawn one by one; more have a logarithmic axis."""


def drawing(found: Sequence[Drift], trained: int) -> str:
    """Return the SVG; a dashed line at ``trained`` depths where there are more."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(12.5, 4.2), layout="constrained")
        for axes, (title, label, plain, dashed) in zip(
            figure.subplots(1, len(_PANELS)), _PANELS, strict=True
        ):
            for number, drift in enumerate(found):
                colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
                name = drift.name if plain is _error else None
                _line(axes, drift, plain, color=colour, marker=marker, ms=4.5, label=name)
                if dashed is not None:
                    _line(axes, drift, dashed, color=colour, ls=(0, (4, 3)), lw=1.1)
                if plain is _error:
                    _band(axes, drift, colour)
            _frame(axes, title, label, found[0].depths[-1].depth, trained)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def check_svg(path: Path) -> None:
    """Raise before anything is measured what would keep ``drawing`` from being made and written."""
    import matplotlib  # noqa: F401

    if path.is_dir():
        raise UsageError(f"the drawing {path} is a folder; name a file in it, such as {path / 'drift.svg'}")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"the drawing {path} would be in a folder that is not there; make {path.parent} first"
        )


def _error(depth: DepthDrift) -> float | None:
    return depth.error


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drift",
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#ddd",
}
_PANELS: tuple[tuple[str, Callable[[float], str], Value, Value | None], ...] = (
    (
        "relative error of the state: median, band to 95%\n(dashed: bound from the depths before)",
        _percent,
        _error,
        lambda depth: depth.bound,
    ),
    (
        "of which carried from the depth before\n(dashed: injected by the depth's own rounding)",
        _percent,
        lambda depth: depth.carried,
        lambda depth: depth.injected,
    ),
    ("KL(float, quantized) of the read-out, nats", "{:g}".format, lambda depth: depth.kl, None),
)
"""Of each panel the title, the labels of its axis, and what its lines are."""


def _line(axes: Axes, drift: Drift, value: Value, **look: Any) -> None:
    """A line over the depths at which ``value`` is known and, on a logarithmic axis, not zero."""
    points = [(each.depth, known) for each in drift.depths if (known := value(each))]
    if len(points) > _FEW:
        look["marker"] = None
    axes.plot([p[0] for p in points], [p[1] for p in points], **look)


def _band(axes: Axes, drift: Drift, colour: str) -> None:
    depths, each = [d.depth for d in drift.depths], drift.depths
    axes.fill_between(
        depths, [d.error for d in each], [d.error_95 for d in each], color=colour, alpha=0.12, lw=0
    )


def _frame(axes: Axes, title: str, label: Callable[[float], str], depths: int, trained: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("depths that were run")
    if axes.dataLim.y1 > 0:  # else all errors are 0
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if depths > _FEW:
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlim(-0.2, depths * 1.1)
        ticks = [0, *(1 << power for power in range(depths.bit_length()))]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    else:
        axes.set_xticks(range(depths + 1))
    if depths > trained:
        axes.axvline(trained, color="#888", lw=1, ls="--")
        axes.annotate(
            "as trained", (trained, 1), xycoords=("data", "axes fraction"), xytext=(3, -10), textcoords="offset points",
            color="#666", fontsize=8,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
