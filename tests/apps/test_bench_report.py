"""``edgeloop bench --report``: one page that needs nothing else, with a chart for every kind of number."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from bench_records import record

from edgeloop.apps.measure.interval import Estimate, estimate
from edgeloop.apps.measure.limit import MACHINE, ROOFLINE
from edgeloop.apps.measure.panels import labels
from edgeloop.apps.measure.record import Measure, Series
from edgeloop.apps.measure.report import render
from edgeloop.apps.measure.tables import facts

Command = Callable[..., tuple[int, str, str]]
VOID = {"meta", "br", "hr"}


class Checked(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open = list[str]()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def measure(name: str, group: str, value: float, unit: str = "ms", at: float | None = None) -> Measure:
    return Measure(name, group, unit, "less", estimate([value * 0.9, value, value * 1.2]), at=at)


FULL = record(
    *(measure(f"decode, 8 tokens behind {n}", "decode", 100 - n, "tokens/s", n) for n in (8, 16)),
    *(measure(f"prefill, {n} tokens", "prefill", 100 + n, "tokens/s", n) for n in (8, 16)),
    *(measure(f"prefill, {n} tokens behind 8", "prefill", 90 + n, "tokens/s", n) for n in (8, 16)),
    *(measure(name, "a token by stages, ms", 1.0) for name in ("prologue", "block, depth 1")),
    *(measure(f"block at depth {n}", "each depth, ms", n, at=n) for n in (1, 2)),
    *(measure(f"a token, exit depth:{n}", "depth, ms", n, at=n) for n in (1, 2)),
    *(measure(f"exit margin: depth {n}", "tokens by depth", n, "tokens", n) for n in (1, 2)),
    *(measure(f"exit {rule}: perplexity", "perplexity, as calibrated", 9.0, "") for rule in ("margin", "never")),
    *(measure(f"a token, exit {rule}", "exit, ms", 2.0, at=2) for rule in ("margin", "never")),
    measure("reading 2 MB over and over, from the cache", MACHINE, 60.0, "GB/s"),
    measure("reading 90 MB over and over, from memory", MACHINE, 15.0, "GB/s"),
    measure("multiplying int4", MACHINE, 400.0, "GOP/s"),
    *(measure(f"block, depth {n}: 3 operations a byte", ROOFLINE, 40.0 + n, "GOP/s", 3.0) for n in (1, 2)),
    measure("prefill, 8 tokens: 90 operations a byte", ROOFLINE, 70.0, "GOP/s", 90.0),
    measure("$x_1^2$ <b> ÷ a", "decode ÷ a & b", 1.5, "×"),
    measure("onnx, 2 users, static", "all users together", 3.0, "tokens/s", 2),
    measure("peak", "memory", 5e7, "bytes"),
    series=tuple(Series(name, "bytes", ((0.0, 1e6), (5.0, 2e6))) for name in ("private", "file-backed")),
    notes=("energy <unavailable>",),
)  # fmt: skip


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = render(FULL)
    checked = Checked()
    checked.feed(page)
    checked.close()
    assert checked.open == []
    for measure in FULL.measures:
        assert measure.name in checked.text
    for said in (
        "a model of 10 parameters, 3 depths (b<i>) on onnx: speed",
        "1 kB, int4",
        "a | processor",
        "1 of 9 turns disturbed",
        "energy <unavailable>",
        "50 MB",
    ):
        assert said in checked.text
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|src=|https?://(?!www\.w3\.org)", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        assert f"--{name}:" in page


def test_there_is_a_chart_for_every_kind_of_number() -> None:
    page = render(FULL)
    headings = re.findall(r"<h2>([^<]*)</h2><svg", page)
    assert headings == [
        "Decoding behind so many tokens", "Reading a prompt of so many tokens", "A token, stage by stage",
        "Each depth while decoding", "A token that stops after so many depths", "Tokens by depth",
        "Quality against speed", "Roofline", "Decode ÷ a &amp; b", "All users together", "Memory of a fresh process",
    ]  # fmt: skip
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        tree = ElementTree.fromstring(svg)
        assert tree.get("aria-label")
        assert "var(--series0)" in svg
        assert not re.search(r"#0[01]0[0-9]{3}\b", svg)  # a colour that the page does not set
    assert "$x_1^2$ &lt;b&gt; ÷ a" in page  # a name, not a formula
    assert render(FULL) == page


def test_a_record_with_little_is_drawn() -> None:
    one = Measure("decode, 8 tokens behind 8", "decode", "tokens/s", "more", Estimate(5, 5, 5, 5, 0, 1), at=8)
    page = render(record(one))
    assert "<h2>" not in page
    assert page.count("5.00 tokens/s") == 2


def test_bench_draws_it(bundle: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run.html"
    words = ("bench", bundle, "-p", 8, "-n", 4, "--runs", 1, "--report")
    code, _, err = command(*words, out, "--save", tmp_path / "runs")
    assert code == 0
    assert f"drawn as {out}" in err
    (path,) = (tmp_path / "runs").iterdir()
    saved = msgspec.json.decode(path.read_bytes())
    page = out.read_text(encoding="utf-8")
    assert all(each["name"] in page for each in saved["measures"])
    before = page
    for place, said in (
        (out, "already; add --force"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "a.html", "a folder that is not there"),
    ):
        code, printed, err = command(*words, place)
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert said in err
    assert out.read_text(encoding="utf-8") == before
    assert command(*words, out, "--force")[0] == 0


def test_a_library_that_is_missing_is_said_before_anything_is_measured(
    bundle: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = command("bench", bundle, "--report", tmp_path / "x.html")
    assert (code, out) == (1, "")
    assert "pip install 'edgeloop[calibrate]'" in err


def test_a_rule_has_one_colour_in_all_charts() -> None:
    """Rules that let nobody leave early come no later: a chart's order and colours are the record's."""
    rules = ("exit latent", "exit probe", "exit never")
    depths = {"exit latent": (2, 3), "exit probe": (1, 2), "exit never": (3,)}
    made = record(
        *(measure(f"a token, {rule}", "exit, ms", 2.0 + n, at=3 - n) for n, rule in enumerate(rules)),
        *(
            measure(f"{rule}: depth {depth}", "tokens by depth", 5.0, "tokens", depth)
            for rule in rules
            for depth in depths[rule]
        ),
        *(
            measure(f"{rule}: perplexity", "perplexity, as calibrated", 9.0, "", 3 - n)
            for n, rule in enumerate(rules)
        ),
    )
    charts = re.findall(r"<svg.*?</svg>", render(made), re.DOTALL)
    assert len(charts) == 2
    for svg in charts:
        assert re.findall(r">(exit \w+)</text>", svg) == list(rules)
        colours = dict.fromkeys(re.findall(r"var\(--(series\d)\)", svg))
        assert list(colours) == ["series0", "series1", "series2"]


def test_a_record_without_turns_has_none_that_were_disturbed() -> None:
    assert dict(facts(record(turns=0, disturbed=0, foreign=0.5)))["other programs"] == "50% of the cores"


def test_long_labels_still_differ() -> None:
    assert labels(["prologue", "x" * 40]) == ["prologue", "x" * 20 + " … " + "x" * 11]
    flags = ("--exit depth:2", "--engine onnx")
    assert labels(
        [f"decode, /a/long/folder/bundle {flag} ÷ /a/long/folder/bundle" for flag in flags]
    ) == list(flags)
    assert labels([f"random tokens: pipelined, forced acceptance 0.{n} ÷ sequential" for n in (5, 7)]) == [
        f"pipelined, forced acceptance 0.{n}" for n in (5, 7)
    ]
    assert labels(["a" * 20 + " " + "b" * 20] * 2) == ["a" * 20] * 2
    assert labels([f"{n}: a text that is rather long, pipelined" for n in (1, 2)]) == [
        f"{n}: a text that is rather long" for n in (1, 2)
    ]
