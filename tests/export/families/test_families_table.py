"""The table of docs/models.md is of fixtures that are there, and its numbers are within what exports are held to."""

from __future__ import annotations

import pytest
from families_table import COLUMNS, FIXTURES, PAGE, ROWS, written
from ops_table import parts

from edgeloop.export.bounds import EXACT
from edgeloop.export.targets.coreml.errors import MOST

TABLE = written(parts(PAGE.read_text(encoding="utf-8"), "families_table.py")[1])
OTHER_TESTS = {
    "albert_g2_inner2_padded"
}  # padded texts with types of tokens: tests/export/families/test_albert.py


def test_every_fixture_may_have_a_row() -> None:
    assert {folder.name for folder in FIXTURES.iterdir() if folder.is_dir()} - OTHER_TESTS == set(ROWS)
    assert set(TABLE) <= set(ROWS)


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_within_the_bounds(name: str) -> None:
    family, fixture, reference, *engines = (cell.strip(" `") for cell in TABLE[name].split("|")[1:-1])
    assert (family, fixture) == (ROWS[name].family, name)
    found = dict(zip(COLUMNS[3:], engines, strict=True))
    assert float(reference) <= EXACT
    for engine, cell in found.items():
        assert cell == "no" or float(cell) <= (MOST if engine == "coreml" else EXACT), engine
    assert found["native"] != "no"
