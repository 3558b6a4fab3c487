"""The report: complete, self-contained, escaped, written whole or not at all."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from edgeloop.export.calibration.measured import Measured
from edgeloop.export.calibration.report import write_report
from edgeloop.export.calibration.search import Goal
from edgeloop.runtime.bundle.manifest import NEVER

FULL = Measured("full depth", (), 3, 1, 12, 12, 40, 1)
POINTS = [
    Measured("confidence", (0.9, 0.8), 2.1, 0.97, 12.3, 12, 55.5, 1.39, chosen=True),
    Measured("confidence", (0.95, NEVER), 2.6, 0.99, 12.06, 12),
    Measured("entropy", (0.4, -NEVER), 2.4, 0.98, 11.94, 12, 48, 1.2, chosen=True),
]


def test_the_page_holds_every_number_and_needs_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    facts = {"text": "a <b> & c"}
    write_report(out, POINTS, FULL, title="x < y", goal=Goal("perplexity", 0.01), facts=facts)
    page = out.read_text(encoding="utf-8")
    assert "<title>x &lt; y</title>" in page
    assert "a &lt;b&gt; &amp; c" in page
    assert "perplexity +1%" in page
    rows = [re.findall(r"<td>([^<\n]*)", row) for row in re.findall(r"<tr[^>]*>(<td>.*)", page)]
    assert rows == [
        ["full depth", "none", "3.00", "100.00%", "12", "+0.00%", "40.0", "1.00×"],
        ["confidence", "0.9, 0.8", "2.10", "97.00%", "12.3", "+2.50%", "55.5", "1.39×"],
        ["entropy", "0.4, never", "2.40", "98.00%", "11.94", "−0.50%", "48.0", "1.20×"],
        ["confidence", "0.95, never", "2.60", "99.00%", "12.06", "+0.50%", "–", "–"],
    ]
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|src=", page)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_charts_are_valid_svg_in_the_pages_colours(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", POINTS, FULL, title="t", goal=Goal("agree", 0.98))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    charts = [s for s in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "aria-label" in s]
    assert [re.search(r'aria-label="([^"]*)', s)[1] for s in charts] == [  # type: ignore[index]
        "perplexity against mean depth",
        "agreement with full depth against mean depth",
        "perplexity against speed, full depth is 1",
    ]
    ids = []
    for chart in charts:
        tree = ElementTree.fromstring(chart)
        ids += [e.get("id") for e in tree.iter() if e.get("id")]
        assert "var(--series0)" in chart
        assert "var(--series1)" in chart
        assert not re.search(
            r"#0[01]0[0-9]{3}\b", chart
        )  # a colour of matplotlib's that the page does not set
    assert len(ids) == len(set(ids))
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        assert f"--{name}:" in page


def test_without_timings_there_is_no_speed_panel(tmp_path: Path) -> None:
    points = [Measured("margin", (0.5,), 1.5, 0.99, 5.0, 5.0, chosen=True)]
    write_report(tmp_path / "r.html", points, Measured("full depth", (), 2, 1, 5, 5), title="t")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("aria-label") == 2
    assert "goal" not in page


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_report(tmp_path / name, POINTS, FULL, title="t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.html"
    out.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_report(out, POINTS, FULL, title="t")
    assert out.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
