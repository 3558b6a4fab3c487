"""``edgeloop bench --report FILE``: a record as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from ...export.page import rendered, write_page
from .panels import panels
from .record import Measure, Record
from .tables import COLUMNS, facts, model, row

HEADLINES = (
    ("decode", "decoding"),
    ("prefill", "reading"),
    ("time to first token, warm", "first token, warm"),
    ("time to first token, process and files cold", "first token, cold"),
    ("peak", "most memory"),
)
"""What stands at the top: how a measure's name or group begins, and what it is called there."""


def write_report(path: Path, record: Record) -> None:
    """Write the page to ``path`` in one rename."""
    write_page(path, render(record))


def render(record: Record) -> str:
    """Return the page."""
    groups = dict.fromkeys(measure.group for measure in record.measures)
    return rendered(
        _PAGE,
        title=f"{model(record)} on {record.engine}: {record.mode}",
        facts=facts(record),
        headlines=_headlines(record),
        panels=panels(record),
        columns=COLUMNS[1:],
        groups=[(group, [row(measure) for measure in record.group(group)]) for group in groups],
        notes=record.notes,
    )


def _headlines(record: Record) -> list[tuple[str, str, str]]:
    found = []
    for begin, said in HEADLINES:
        measure: Measure | None = next(
            (m for m in record.measures if m.name == begin or (m.group == begin and m.unit == "tokens/s")),
            None,
        )
        if measure is not None:
            _, median, spread, *_ = row(measure)
            found.append((said, median, spread))
    return found


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .92rem; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem;
  margin: 1.5rem 0 1rem; padding: 0; list-style: none; }
.headlines li { padding: .8rem 1rem; background: var(--paper); border: 1px solid var(--grid); border-radius: 10px; }
.headlines b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.headlines span { color: var(--muted); font-size: .85rem; }
.panels { align-items: start; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 10rem; }
.notes { color: var(--muted); font-size: .9rem; }
@media (max-width: 480px) {
  body { padding: 1.25rem .75rem; font-size: 15px; }
  dl.facts { grid-template-columns: 1fr; }
  dl.facts dt { margin-top: .35rem; font-size: .8rem; }
  .headlines { grid-template-columns: 1fr 1fr; }
  .card { padding: .75rem; }
  th, td { padding: .35rem .4rem; font-size: .85rem; }
  th:first-child, td:first-child { min-width: 6.5rem; }
  .mean, .repetitions { display: none; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<dl class="facts">
{% for name, value in facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<ul class="headlines">
{% for name, value, spread in headlines %}
<li><span>{{ name }}</span><b>{{ value }}</b><span>{{ spread }}</span></li>
{% endfor %}
</ul>
<div class="panels">
{% for name, svg in panels %}
<section class="card"><h2>{{ name }}</h2>{{ svg | safe }}</section>
{% endfor %}
</div>
{% for group, rows in groups %}
<section class="card table">
<table>
<thead><tr><th>{{ group }}</th>
{% for column in columns %}
<th class="{{ column.split()[0] }}">{{ column }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for cells in rows %}
<tr>{% for cell in cells %}
<td{% if not loop.first %} class="{{ columns[loop.index0 - 1].split()[0] }}"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</section>
{% endfor %}
<p class="notes">Medians of rounds in turn, with 95% bootstrap intervals; prompts are random tokens.
{% for note in notes %}{{ note }}. {% endfor %}</p>
</body>
</html>
"""
