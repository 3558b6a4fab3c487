"""tests/shapes_table.py measures a shape from checkpoint to row; the page has rows of shapes that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import shapes_table
import tiny
from ops_table import parts
from shapes_table import COLUMNS, DEPTHS, PAGE, ROWS, written

from edgeloop.export.synth import Shape, synthesize_shape
from edgeloop.export.synth_shapes import SHAPES


def test_the_page_has_rows_of_shapes() -> None:
    table = written(parts(PAGE.read_text(encoding="utf-8"), "shapes_table.py")[1])
    assert set(table) <= set(ROWS) <= set(SHAPES)
    assert {len(cells) for cells in table.values()} == {len(COLUMNS) - 1}
    for name, cells in table.items():
        shape = SHAPES[name]
        depths = DEPTHS.get(name, shape.repeats)
        assert int(cells[0]) == depths
        stored, unrolled = (float(count.rstrip(" M").replace(",", "")) for count in cells[1].split(" / "))
        assert 0 < stored < unrolled < stored * depths + 1


@pytest.mark.usefixtures("lane_engine")
def test_a_shape_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny checkpoint under a shape's name; another time of decoding takes the place of the first."""
    page = tmp_path / "page.md"
    mark = "<!-- made by tests/shapes_table.py: %s -->"
    page.write_text(f"before\n{mark % 'begin'}\n{mark % 'end'}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(shapes_table, "PAGE", page)
    monkeypatch.setattr(shapes_table, "BENCH", ("--prompt-tokens", "4", "--tokens", "4", "--runs", "1"))
    name, shape = ROWS[0], Shape("mor", tiny.VOCAB, 128, 256, 4, 2, layers=5, repeats=3, context=64)
    synthesize_shape(shape, tmp_path / f"{name}-checkpoint")
    shapes_table.main(tmp_path, [name])
    (first,) = written(page.read_text(encoding="utf-8")).values()
    assert first[:3] == [
        "3",
        "0 M / 1 M",
        f"{2 * 2 * 32 * 4 * 5:,}",
    ]  # K and V, heads, head_dim, bytes, layers
    assert not (tmp_path / f"{name}-checkpoint").exists()
    assert float(first[-1]) > 0
    shapes_table.put(name, ["0.5"])
    text = page.read_text(encoding="utf-8")
    assert written(text) == {name: [*first[:-1], "0.5"]}
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
