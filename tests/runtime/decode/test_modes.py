"""The table of modes: on the reference engine every cell gives the texts of plain decoding, or is refused by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mode_cells import Walker
from mode_models import MODELS


@pytest.fixture(autouse=True)
def _little_slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that tokens leave a window within a few steps."""
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 2)


@pytest.mark.parametrize("name", MODELS)
def test_every_cell_works_or_is_refused_by_the_table(tmp_path: Path, name: str) -> None:
    walker = Walker(name, tmp_path)
    found = walker.check("reference")
    assert len(found) == 45 * len(walker.exits)
    depths = {depth for each in found for _, ran in each.texts for depth in ran}
    assert len(depths) >= min(2, walker.program.depths)  # or the texts say nothing
