"""The picture of a sweep: speed against memory, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from .sweep import Found

MARKERS = "osD^vPX*"


def draw(path: Path, found: Sequence[Found], device: str) -> None:
    """Write the SVG: a marker for each combination, full where no other one beats it, by model and depths."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeloop", "font.size": 10}):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        axes = figure.add_subplot()
        kinds = dict.fromkeys((one.model, one.depths) for one in found)
        for number, (model, depths) in enumerate(kinds):
            own = [one for one in found if (one.model, one.depths) == (model, depths)]
            for best in (False, True):
                points = [(one.memory / 1e6, one.decode) for one in own if one.best is best]
                if points:
                    colour = f"C{number % 10}"
                    axes.plot(
                        *zip(*points, strict=True),
                        ls="",
                        marker=MARKERS[number % len(MARKERS)],
                        color=colour,
                        fillstyle="full" if best else "none",
                        alpha=1.0 if best else 0.5,
                        label=f"{model}, {depths} depths"
                        if best or all(not one.best for one in own)
                        else None,
                    )
        axes.set(xscale="log", xlabel="memory, MB", ylabel="tokens/s", title=f"predicted on {device}")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    path.write_text(text.getvalue(), encoding="utf-8")
