"""tests/quantization_table.py measures rows from checkpoint to page and plots; the page has rows that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantization_plots
import quantization_table
from ops_table import parts
from quantization_table import FLOATS, PAGE, ROWS, Row, cells, in_groups, write_texts, written

from edgeloop.apps.cli import main

INT4, FITTED, TRAINED = "int4, groups of 32", "int4, groups of 32, fitted", "int4, groups of 32, trained"


def test_the_page_has_rows_that_are_measured() -> None:
    found = written(PAGE.read_text(encoding="utf-8"))
    assert list(found) == ["demo", "routed"][: len(found)]
    for model, rows in found.items():
        assert rows[0] == FLOATS
        assert set(rows) <= {name for name, row in ROWS.items() if model in row.models}
    for name in ("bytes", "depths"):
        svg = PAGE.with_name(f"quantization-{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert f"quantization-{name}.svg" in PAGE.read_text(encoding="utf-8")


def test_no_paragraph_is_in_both_texts(tmp_path: Path) -> None:
    write_texts(tmp_path)
    calibration, validation = (
        (tmp_path / f"{name}.txt").read_text(encoding="ascii").split("\n\n")
        for name in ("calibration", "validation")
    )
    assert not set(calibration) & set(validation)
    assert len(set(calibration)) == len(calibration)
    assert len("\n\n".join(calibration)) > 2_000_000


@pytest.mark.usefixtures("lane_engine")
def test_rows_are_measured_once(
    tiny_once: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of tiny models, by commands in this process; a row that is kept is not measured again, one that is named is."""

    def edgeloop(*words: object, folder: Path) -> dict[str, Any]:
        monkeypatch.chdir(folder)
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    monkeypatch.setattr(quantization_table, "edgeloop", edgeloop)
    page = tmp_path / "page.md"
    mark = "<!-- made by tests/quantization_table.py: %s -->"
    page.write_text(f"before\n{mark % 'begin'}\n{mark % 'end'}\nafter\n", encoding="utf-8")
    models = {"demo": tiny_once("edgeloop"), "routed": tiny_once("edgeloop-routed")}
    both = ("demo", "routed")
    rows = {
        FLOATS: Row(("--quant", FLOATS), models=both),
        INT4: in_groups("int4", 32, models=both),
        FITTED: in_groups("int4", 32, "--calibrate", "calibration.txt"),
        TRAINED: Row(("--quant", "int4", "--group-size", "32"), steps=1),
    }

    def texts(folder: Path) -> None:
        for name in ("calibration", "validation"):
            (folder / f"{name}.txt").write_text(f"The {name} of a king who had three sons. " * 12)

    for name, value in (("PAGE", page), ("MODELS", models), ("ROWS", rows), ("write_texts", texts)):
        monkeypatch.setattr(quantization_table, name, value)
    quantization_table.main(tmp_path / "kept", [])
    text = page.read_text(encoding="utf-8")
    assert written(text) == {"demo": [FLOATS, INT4, FITTED, TRAINED], "routed": [FLOATS, INT4]}
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    kept = tmp_path / "kept" / "demo"
    assert {path.name for path in kept.iterdir()} == {FLOATS, *(f"{name}.json" for name in rows)}
    found = json.loads((kept / f"{INT4}.json").read_text())
    assert found["divergence_per_depth"][-1] > 0
    assert found["bytes"] < json.loads((kept / f"{FLOATS}.json").read_text())["bytes"]
    (kept / f"{FITTED}.json").write_text(json.dumps(found))
    quantization_table.main(tmp_path / "kept", [])
    assert json.loads((kept / f"{FITTED}.json").read_text()) == found
    quantization_table.main(tmp_path / "kept", [FITTED])
    assert json.loads((kept / f"{FITTED}.json").read_text()) != found
    text = page.read_text(encoding="utf-8")
    (tmp_path / "kept" / "demo" / f"{FLOATS}.json").rename(tmp_path / "away.json")
    quantization_table.write(tmp_path / "kept")  # of the demo nothing is known: its table stays
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(SystemExit, match="there are no rows"):
        quantization_table.main(tmp_path / "kept", ["int5"])


def test_a_row_says_what_was_found() -> None:
    found = {
        "bytes": 3_670_000,
        "bits_per_weight": 4.894,
        "perplexity_per_depth": [40.4, 40.2],
        "change_per_depth": [0.01, 0.005],
        "change_interval_per_depth": [[0.008, 0.012], None],
        "divergence_per_depth": [0.0123, 0.0045],
        "accepted_per_depth": [0.7, 1.0],
        "drafts_per_depth": [-0.002, 0.0],
        "drafts_interval_per_depth": [[-0.003, -0.001], [0.0, 0.0]],
        "exit_perplexity": 40.5,
        "exit_depth": 1.5,
    }
    floats = {"exit_perplexity": 40.0}
    wanted = [
        INT4,
        "3.67",
        "4.89",
        "+1.00 ± 0.20",
        "+0.50",
        "12.30, 4.50",
        "-0.20 ± 0.10",
        "+1.25, depth 1.500",
    ]
    assert list(cells(INT4, found, floats)) == wanted
    routed = {name: value[:1] if isinstance(value, list) else value for name, value in found.items()}
    assert list(cells(INT4, routed, {})) == [*wanted[:4], "12.30"]


def test_plots_have_every_kind_of_codes() -> None:
    def row(bytes_: float, change: float) -> dict[str, object]:
        return {
            "bytes": bytes_,
            "divergence_per_depth": [change, change],
            "change_per_depth": [change, change],
            "change_interval_per_depth": [[0.0, 2 * change]] * 2,
        }

    rows = {
        FLOATS: row(2e7, 0.0),
        INT4: row(3e6, 0.02),
        "int4, groups of 128": row(2e6, 0.03),
        "int8": row(6e6, 1e-4),
    }
    found = quantization_plots.drawn(rows, FLOATS)
    assert set(found) == {"bytes", "depths"}
    for svg in found.values():
        labels = set(re.findall(r">([^<>]+)</text>", svg))
        assert {"int4", "int8"} <= labels
        assert FLOATS not in labels
    assert quantization_plots.drawn(rows, FLOATS) == found
    assert quantization_plots.drawn({FLOATS: rows[FLOATS]}, FLOATS) == {}


def test_tables_are_between_the_marks() -> None:
    before, _, after = parts(PAGE.read_text(encoding="utf-8"), "quantization_table.py")
    assert "Measured on the demo" in before
    assert after.startswith("\n<!--")
