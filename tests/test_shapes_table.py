"""tests/shapes_table.py measures a shape from checkpoint to row; the page has rows of shapes that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shapes_table
import tiny
from ops_table import parts
from shapes_table import COLUMNS, DEPTHS, PAGE, ROWS, estimated, number, written

from edgeloop.export.pipeline import export_bundle
from edgeloop.export.synth import Shape, synthesize_shape
from edgeloop.export.synth_shapes import SHAPES, WRITTEN_OUT
from edgeloop.runtime.session import Session


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
@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("mor")])
def test_a_small_copy_of_each_shape_is_exported_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As many depths of two layers each, and a few numbers in these; the script's options."""
    real = SHAPES[name]
    kv_heads = 2 if real.kv_heads == real.heads else 1
    small = replace(
        real,
        vocab_size=tiny.VOCAB,
        hidden_size=64,
        intermediate_size=96,
        heads=2,
        kv_heads=kv_heads,
        head_size=16 if real.head_size else None,
        layers=2 * real.repeats if real.family in WRITTEN_OUT else 2,
        context=64,
    )
    monkeypatch.setitem(SHAPES, name, small)
    folder = synthesize_shape(small, tmp_path / "checkpoint")
    options = {"targets": ["native"], "quant": "int4", "group_size": 128, "depth": DEPTHS.get(name)}
    report = export_bundle(folder, tmp_path / "bundle", **options)
    found = estimated(name, {})
    program = report.manifest.program
    assert str(program.depths) == found[0]
    assert program.applied_layers == number(found[2]) / (2 * 4 * small.kv_heads * small.head_dim)
    with Session.open(tmp_path / "bundle", engine="native") as session:
        tokens = [step.token for step in session.generate([1, 2, 3], 4)]
    assert 1 <= len(tokens) <= 4


def test_an_estimate_is_near_what_was_measured() -> None:
    """Parameters to their norms and gates, K/V to the byte, the bundle to its tokenizer and norms."""
    measured = written(parts(PAGE.read_text(encoding="utf-8"), "shapes_table.py")[1])
    for name in ("mor-360m-r3", "rrt-tinyllama-2x11", "ouro-1.4b"):
        found, wanted = estimated(name, measured), measured[name]
        assert (found[0], found[2]) == (wanted[0], wanted[2])
        for ours, theirs in zip(found[1].split(" / "), wanted[1].split(" / "), strict=True):
            assert number(ours) == pytest.approx(number(theirs), rel=2e-3)
        assert number(found[3].removeprefix("about ")) == pytest.approx(number(wanted[3]), rel=0.03)
        assert number(found[-1].removeprefix("about ")) > 0
    assert estimated("huginn-3.5b", measured)[:3] == ["4", "3,565 M / 8,476 M", "844,800"]


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
    assert float(first[-1]) >= 0  # of a model so small, 0.0 ms on a fast computer
    shapes_table.put(name, ["0.5"])
    text = page.read_text(encoding="utf-8")
    assert written(text) == {name: [*first[:-1], "0.5"]}
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
