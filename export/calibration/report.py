"""One self-contained HTML page on calibrated exit rules: the curves of each, and the thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...runtime.bundle.manifest import NEVER
from ..page import check_page, rendered, write_page
from .charts import COLOURS, MARKERS, panel
from .measured import Measured
from .search import Goal


def check_report(path: Path, force: bool) -> None:
    """Raise what ``write_report`` would where a library is missing; UsageError where ``path`` cannot be a file, or is
    one already and not to be replaced."""
    check_page(path, force)


def write_report(
    path: Path,
    measured: Sequence[Measured],
    full: Measured,
    *,
    title: str,
    goal: Goal | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the page to ``path`` in one rename; OSError when that fails, and then ``path`` is as it was.

    ``measured``: the points of every rule's curve, chosen ones included; ``full``: the same text at full depth.
    ``facts`` (text, engine, machine …) stand below the title.
    """
    write_page(path, render(measured, full, title=title, goal=goal, facts=facts or {}))


def render(
    measured: Sequence[Measured], full: Measured, *, title: str, goal: Goal | None, facts: Mapping[str, str]
) -> str:
    """Return the page of ``write_report``."""
    rules: dict[str, list[Measured]] = {}
    for point in measured:
        rules.setdefault(point.rule, []).append(point)
    limits: dict[str, float | None] = {"agree": None, "perplexity": None}
    if goal is not None:
        limits[goal.kind] = goal.value if goal.kind == "agree" else full.full_perplexity * (1 + goal.value)
    panels = {
        "Perplexity by depth": panel(
            rules, full, lambda p: p.mean_depth, lambda p: p.perplexity, ("mean depth", "perplexity"),
            line=limits["perplexity"],
        ),
        "Agreement by depth": panel(
            rules, full, lambda p: p.mean_depth, lambda p: p.agreement,
            ("mean depth", "agreement with full depth"), line=limits["agree"], percent=True,
        ),
    }  # fmt: skip
    if any(p.speed is not None for p in measured):
        panels["Perplexity by speed"] = panel(
            rules, full, lambda p: p.speed, lambda p: p.perplexity,
            ("speed, full depth is 1", "perplexity"), line=limits["perplexity"],
        )  # fmt: skip
    return rendered(
        _PAGE,
        title=title,
        goal=goal,
        facts=facts,
        panels=panels,
        legend=[(rule, i % COLOURS, _SHAPES[MARKERS[i % len(MARKERS)]]) for i, rule in enumerate(rules)],
        chosen=[_row(p) for p in measured if p.chosen],
        full=_row(full),
        rest=[_row(p) for p in measured if not p.chosen],
    )


def _row(point: Measured) -> dict[str, str]:
    return {
        "rule": point.rule,
        "thresholds": ", ".join("never" if abs(t) >= NEVER else f"{t:.4g}" for t in point.thresholds)
        or "none",
        "depth": f"{point.mean_depth:.2f}",
        "agreement": f"{point.agreement:.2%}",
        "perplexity": f"{point.perplexity:.4g}",
        "change": f"{point.perplexity / point.full_perplexity - 1:+.2%}".replace("-", "−"),
        "rate": "–" if point.tokens_per_s is None else f"{point.tokens_per_s:.1f}",
        "speed": "–" if point.speed is None else f"{point.speed:.2f}×",
    }


# The legend's shapes, on a 12 × 12 field, for matplotlib's markers of the same names.
_SHAPES = {
    "o": "M6 1.5a4.5 4.5 0 1 0 .01 0z",
    "s": "M2 2h8v8h-8z",
    "D": "M6 .5 11.5 6 6 11.5 .5 6z",
    "^": "M6 1 11 10.5H1z",
    "v": "M6 11 1 1.5h10z",
    "P": "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M1 3 3 1 6 4 9 1 11 3 8 6 11 9 9 11 6 8 3 11 1 9 4 6z",
}

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin: 1.5rem 0 .75rem; padding: 0;
  list-style: none; }
.legend svg { width: .8em; height: .8em; margin-right: .4em; vertical-align: -.03em; overflow: visible; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
td:nth-child(2) { min-width: 9rem; white-space: normal; }
.full td { color: var(--muted); }
</style>
</head>
<body>
{% macro table(rows) %}
<table>
<thead><tr><th>rule<th>thresholds<th>mean depth<th>agreement<th>perplexity<th>against full<th>tokens/s<th>speed\
</tr></thead>
<tbody>
{% for r in rows %}
<tr{% if r is sameas full %} class="full"{% endif %}><td>{{ r.rule }}<td>{{ r.thresholds }}<td>{{ r.depth }}\
<td>{{ r.agreement }}<td>{{ r.perplexity }}<td>{{ r.change }}<td>{{ r.rate }}<td>{{ r.speed }}</tr>
{% endfor %}
</tbody>
</table>
{% endmacro %}
<h1>{{ title }}</h1>
<dl>
{% if goal %}<div><dt>goal<dd>{{ goal }}</div>{% endif %}
{% for name, value in facts.items() %}<div><dt>{{ name }}<dd>{{ value }}</div>{% endfor %}
</dl>
<ul class="legend">
{% for rule, number, shape in legend %}
<li><svg viewBox="0 0 12 12" aria-hidden="true"><path fill="var(--series{{ number }})" d="{{ shape }}"/></svg>{{ rule }}
{% endfor %}
<li><svg viewBox="0 0 12 12" aria-hidden="true"><path fill="none" stroke="var(--ink)" stroke-width="1.6" \
d="M6 1a5 5 0 1 0 .01 0z"/></svg>outlined: chosen
<li><svg viewBox="0 0 12 12" aria-hidden="true"><path fill="var(--ink)" \
d="M6 0 7.4 4.2H12L8.3 6.9 9.7 11.2 6 8.6 2.3 11.2 3.7 6.9 0 4.2h4.6z"/></svg>full depth
</ul>
<div class="panels">
{% for name, svg in panels.items() %}
<section class="card"><h2>{{ name }}</h2>{{ svg | safe }}</section>
{% endfor %}
</div>
<section class="card table"><h2>Thresholds</h2>
{{ table([full] + chosen) }}
</section>
{% if rest %}
<section class="card table"><details><summary>The other points of the curves</summary>
{{ table(rest) }}</details></section>
{% endif %}
</body>
</html>
"""
