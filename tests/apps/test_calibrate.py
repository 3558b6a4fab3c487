"""What ``edgeloop calibrate`` says of a rule: the terminal and the report say the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.apps.calibrate import measured, row
from edgeloop.export.calibration.report import write_report
from edgeloop.runtime.decode.evaluation import Evaluation


def evaluation(perplexity: float, depth: float, rate: float, speed: float) -> Evaluation:
    """Of a text whose perplexity at full depth is 12, run in chunks."""
    return Evaluation(perplexity, 12.0, 0.97, depth, depth / 3, 400, rate, speed, 0.1)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("gone/exits.html", "would be in a folder that is not there; make gone first"),
        (".", "is a folder; name a file in it, such as report.html"),
        ("old.html", "there is a report old.html already; add --force to replace it"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_first(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
    report: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text("Once upon a time there was a king. " * 20)
    Path("old.html").write_text("old")
    code, _, err = command("calibrate", bundle, "--text", "some.txt", "--report", report)
    assert (code, err.count("\n")) == (2, 1)
    assert told in err
    assert Path("old.html").read_text() == "old"


def test_a_missing_library_is_told_before_anything_is_measured(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    (tmp_path / "some.txt").write_text("Once upon a time there was a king. " * 20)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = command(
        "calibrate", bundle, "--text", tmp_path / "some.txt", "--report", tmp_path / "exits.html"
    )
    assert code == 1
    assert (
        err == "edgeloop: this needs matplotlib, which is not installed: pip install 'edgeloop[calibrate]'\n"
    )


def test_the_report_and_the_terminal_say_the_same(tmp_path: Path) -> None:
    """On a busy machine the median of the windows' ratios is not the ratio of the windows' medians."""
    found = {
        "full depth": evaluation(12.01, 3.0, 100.0, 1.0),
        "confidence": evaluation(12.3, 2.1, 178.0, 1.22),
        "probe": evaluation(11.9, 1.5, 90.0, 1.55),
    }
    points = [
        measured(rule, (0.9, 0.8) if i else (), one, chosen=i > 0)
        for i, (rule, one) in enumerate(found.items())
    ]
    write_report(tmp_path / "r.html", points[1:], points[0], title="t")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<td>([^<\n]*)", line) for line in re.findall(r"<tr[^>]*>(<td>.*)", page)]
    for shown, (rule, one) in zip(rows, found.items(), strict=True):
        name, _, depth, _, _, change, _, speed = row(rule, (0.9, 0.8), one)
        assert shown[0] == name
        assert shown[2] == depth
        assert shown[5].replace("−", "-") == change
        assert shown[7] == speed
