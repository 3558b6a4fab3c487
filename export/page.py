"""What every HTML report shares: one file without anything outside of it, for dark and light, phone and desktop.

Charts are matplotlib's SVG, inline, in colours that are the page's own variables.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
"""The colours that matplotlib draws with, and the page's CSS variables that replace them."""
SERIES = tuple(f"#01020{i}" for i in range(7))

STYLE = """\
:root { color-scheme: light dark; --font: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --ink: #1c2430; --muted: #566173; --grid: #dfe4ea; --paper: #ffffff; --page: #f4f6f8;
  --series0: #1f6fd6; --series1: #d9590d; --series2: #158a53; --series3: #a436b8; --series4: #b38600;
  --series5: #c92a4b; --series6: #0f8696; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8ecf2; --muted: #a2adbd; --grid: #333c49; --paper: #1a2029; --page: #11161c;
  --series0: #6aa9ff; --series1: #ff9a57; --series2: #4fcf8e; --series3: #dd8aee; --series4: #e6c04d;
  --series5: #ff7c94; --series6: #54cfdf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2.5rem 1.25rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 var(--font); }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .5rem; font-size: 1rem; }
dl { display: flex; flex-wrap: wrap; gap: .15rem 1.5rem; margin: 0; color: var(--muted); }
dl div { display: flex; gap: .4rem; }
dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 1rem; }
.card { padding: 1rem; background: var(--paper); border: 1px solid var(--grid); border-radius: 10px; }
.card > svg { display: block; width: 100%; max-width: 40rem; height: auto; }
.table { margin-top: 1rem; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-size: .85rem; font-weight: 600; }
tr:last-child td { border-bottom: 0; }
summary { cursor: pointer; color: var(--muted); }
"""
"""The style that the pages have in common."""


def check_page(path: Path, force: bool) -> None:
    """Raise what drawing and ``write_page`` would where a library is missing; UsageError where ``path`` cannot be a
    file, or is one already and not to be replaced.

    Asked first: what a report shows takes minutes to measure.
    """
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401

    check_file(path, force)


def check_file(path: Path, force: bool, what: str = "report", suffix: str = ".html") -> None:
    """Raise UsageError where ``path`` cannot be a file, or is one already and not to be replaced."""
    if path.is_dir():
        raise UsageError(
            f"the {what} {path} is a folder; name a file in it, such as {path / (what + suffix)}"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"the {what} {path} would be in a folder that is not there; make {path.parent} first"
        )
    if path.exists() and not force:
        raise UsageError(f"there is a {what} {path} already; add --force to replace it, or name another file")


def rendered(template: str, **values: object) -> str:
    """Return a page: ``template`` is Jinja, with all values escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(style=STYLE, **values)


def write_page(path: Path, text: str) -> None:
    """Write the page to ``path`` in one rename; OSError when that fails, and then ``path`` is as it was."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            # A temporary file is its owner's alone; a page gets the permissions of any other new file.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def chart(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.2, 3.3)) -> str:
    """Return an inline ``<svg>`` of ``size`` inches that ``draw`` has drawn; ``title`` is read out in its place."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11, "text.parse_math": False}
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=MUTED, length=0)
        draw(axes)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(MUTED)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Return ``svg`` without its XML head, with the page's colours and font, and only the ids that are referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = escape(title).replace("\\", r"\\")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for colour, name in [*_NAMES.items(), *((c, f"series{i}") for i, c in enumerate(SERIES))]:
        svg = svg.replace(colour, f"var(--{name})")
    return svg
