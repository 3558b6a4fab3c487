"""The table of modes: on the reference engine every cell gives the texts of plain decoding, or is refused by it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import modes_table
import ops_table
import pytest
from mode_cells import Walker
from mode_models import MODELS, model

from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.modes import REFUSED
from edgeloop.runtime.decode.skipped_kv import SKIPPED_KV
from edgeloop.runtime.engines.table import ENGINES


@pytest.mark.parametrize("name", MODELS)
def test_every_cell_works_or_is_refused_by_the_table(tmp_path: Path, name: str) -> None:
    walker = Walker(name, tmp_path)
    found = walker.check("reference")
    assert len(found) == 75 * len(walker.exits)
    depths = {depth for each in found for text in each.texts for _, depth in text}
    assert len(depths) >= min(2, walker.program.depths)  # or the texts say nothing


def test_the_docs_say_what_the_table_says() -> None:
    _, found, _ = ops_table.parts(modes_table.PAGE.read_text(encoding="utf-8"), modes_table.__file__)
    assert found == modes_table.tables(), f"docs/modes.md is not what modes.py says: {modes_table.COMMAND}"


def test_every_row_refuses_something_that_no_row_before_it_does() -> None:
    can = replace(ENGINES["reference"].can, packed=False, host_rows=False, free_rows=False)
    told = set()
    for program in map(model, MODELS):
        for rule in modes_table.rules(program):
            for mode in modes_table.modes(program, rule, product(SKIPPED_KV, KV_LAYOUTS)):
                told |= {modes_table.first_row(mode), modes_table.first_row(replace(mode, can=can))}
    assert [row.when for row in REFUSED if row not in told] == []
