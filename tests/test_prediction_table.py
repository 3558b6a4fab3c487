"""tests/prediction_table.py measures, fits and writes; what others published is predicted within a factor of two."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import draft_prediction_table
import msgspec
import numpy as np
import prediction_table
import published_speeds
import pytest
import tiny
from msgspec import structs
from ops_table import parts
from prediction_table import PAGE, Points, Timed, fit

from edgeloop.apps.predicting.costs import Costs, lane_engine
from edgeloop.apps.predicting.device import device, named, written
from edgeloop.apps.predicting.subject import of_program
from edgeloop.export.synth_program import program_of_shape
from edgeloop.export.synth_shapes import SHAPES, Shape

SHAPE = Shape("mor", tiny.VOCAB, 128, 256, 4, 2, layers=5, repeats=3, context=128)


def test_what_others_measured_is_predicted_within_two() -> None:
    found = published_speeds.span()
    assert found.devices >= 6
    assert 0.5 <= found.least <= found.most <= 2
    said = lane_engine().published
    assert said is not None
    assert (said.points, said.devices) == (found.points, found.devices)
    assert (said.least, said.most) == pytest.approx((found.least, found.most), rel=1e-3)
    assert {row.device for row in published_speeds.ROWS} <= set(named())


def test_the_page_has_the_table_of_these_numbers() -> None:
    found = parts(PAGE.read_text(encoding="utf-8"), "published_speeds.py")[1]
    assert found == "\n".join(published_speeds.table())


def test_a_fit_finds_the_numbers_that_made_the_points() -> None:
    """Points of a processor with other numbers: their errors go."""
    start, other = lane_engine().fitted, device("intel-n150")
    truth = structs.replace(
        start, unpack4=start.unpack4 * 5, row=start.row * 1.6, attention=start.attention * 2
    )
    points = Points.__new__(Points)
    points.device, points.subjects = (
        other,
        {"m": of_program("m", program_of_shape(SHAPES["smollm-135m-r3"]), "int4", 32)},
    )
    kinds = product((1, 2), ("prompt", "token"), (64, 512))
    points.points = [Timed("m", threads, phase, tokens, 1.0) for threads, phase, tokens in kinds]
    points.points = [replace(point, seconds=points.predicted(point, truth)) for point in points.points]
    before = np.abs(points.errors(start))
    after = np.abs(points.errors(fit(points, start)))
    assert np.median(before) > 0.1
    assert np.median(after) < 0.03


@pytest.mark.usefixtures("lane_engine")
def test_models_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From shapes to numbers and tables, with a profile that is there already."""
    page, numbers, profile = tmp_path / "page.md", tmp_path / "numbers.toml", tmp_path / "work" / "this.toml"
    marks = [
        f"<!-- made by tests/{name}: {end} -->"
        for name in ("prediction_table.py", "published_speeds.py")
        for end in ("begin", "end")
    ]
    page.write_text("\n".join(["before", *marks, "after", ""]), encoding="utf-8")
    models = {"small": (SHAPE, "int4", 32)}
    for name, value in (
        ("PAGE", page), ("FILE", numbers), ("FIT", models), ("HELD", models), ("CONTEXTS", (16,)), ("TOKENS", 4),
        ("READS", 1), ("THREADS", (1,)),
    ):  # fmt: skip
        monkeypatch.setattr(prediction_table, name, value)
    run = subprocess.run

    def measured(words: list[str], **how: object) -> object:
        if words[1:3] == ["device", "measure"]:
            profile.write_text(written(device("intel-n150")), encoding="utf-8")
            return None
        return run(words, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(prediction_table.subprocess, "run", measured)
    prediction_table.main(tmp_path / "work")
    found = msgspec.toml.decode(numbers.read_bytes(), type=Costs)
    assert found.error is not None
    assert found.error.points >= 2
    text = page.read_text(encoding="utf-8")
    assert "| small | 1 | prompt of" in text
    assert "| raspberry-pi-5 | TinyLlama 1.1B" in text
    assert (text[:7], text[-7:]) == ("before\n", "\nafter\n")


def test_drafts_are_held_to_what_is_predicted(tmp_path: Path) -> None:
    """Where a run was as fast as predicted the error is none; runs that hardly drafted are left out."""
    subject = of_program("m", program_of_shape(SHAPES["smollm-135m-r3"]), "int4", 32)
    other = device("intel-n150")
    seconds = draft_prediction_table.predicted(subject, other, 2, 0.75)
    row = {"forced_acceptance": 0.75, "acceptance": 0.7, "drafted": 0.98, "passes_per_token": 1.6}
    row["tokens_per_s"] = 1 / seconds
    rows = [
        row | {"acceptance": None, "forced_acceptance": None, "drafted": 0.0},
        row,
        row | {"tokens_per_s": 2 / seconds},
        row | {"drafted": 0.2},
    ]
    kept = draft_prediction_table.drafted(rows)
    told, _, _, _, *table = draft_prediction_table.lines([(subject, 2, each) for each in kept], other)
    assert len(table) == 2
    assert table[0].startswith("| m | 2 | 75% | 1.60, predicted 1.50 | ")
    assert table[0].endswith("| +0% |")
    assert table[1].endswith("| -50% |")
    assert "Median error 50%, worst 100%, on 2 points" in told
