"""The table of docs/models.md has every family and fixture, and its numbers are within what exports are held to."""

from __future__ import annotations

import pytest
from families_table import COLUMNS, ENGINES, FIXTURES, PAGE, ROWS, cells, written
from ops_table import parts

from edgeloop.export.bounds import EXACT
from edgeloop.export.families import FAMILIES
from edgeloop.export.targets.coreml.errors import MOST

TABLE = written(parts(PAGE.read_text(encoding="utf-8"), "families_table.py")[1])
OTHER_TESTS = {
    "albert_g2_inner2_padded"
}  # padded texts with types of tokens: tests/export/families/test_albert.py
WITHOUT_FIXTURE = {"edgeloop", "llama"}
"""Compared with apps/demo/model.py (tests/apps/test_demo_recipe.py), and with transformers (test_rope.py)."""


def test_every_fixture_and_family_has_a_row() -> None:
    assert {folder.name for folder in FIXTURES.iterdir() if folder.is_dir()} - OTHER_TESTS == set(ROWS)
    assert {entry.name for entry in FAMILIES} - WITHOUT_FIXTURE == {row.family for row in ROWS.values()}
    page = PAGE.read_text(encoding="utf-8")
    assert set(TABLE) <= set(ROWS)
    assert [name for name in ROWS if f"`{name}`" not in page] == []  # with its errors, or as not measured yet


def within(column: str, cell: str) -> bool:
    """Whether an error is within the bound that exports to its target are held to."""
    return cell == "no" or float(cell) <= (MOST if column == "coreml" else EXACT)


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_within_the_bounds(name: str) -> None:
    family, fixture, *errors = (cell.strip(" `") for cell in TABLE[name].split("|")[1:-1])
    assert (family, fixture) == (ROWS[name].family, name)
    found = dict(zip(COLUMNS[2:], errors, strict=True))
    assert {engine: cell for engine, cell in found.items() if not within(engine, cell)} == {}
    assert "no" not in (found["reference"], found["native"])


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize("name", ["rec_middle_cycle", "iquestloopcoder_w5"])
def test_a_row_is_what_is_measured(name: str) -> None:
    """On the engines that take a second: where the table has an error there is one, within the bound."""
    quick = {target: ENGINES[target] for target in ("native", "onnx")}
    found = dict(zip(("reference", *quick), cells(name, quick), strict=True))
    row = dict(zip(COLUMNS, (cell.strip(" `") for cell in TABLE[name].split("|")[1:-1]), strict=True))
    assert {engine: cell == "no" for engine, cell in found.items()} == {e: row[e] == "no" for e in found}
    assert all(within(engine, cell) for engine, cell in found.items())
