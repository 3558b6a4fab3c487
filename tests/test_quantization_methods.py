"""tests/quantization_methods.py switches off what it says, and reads a package's values back."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from coreml_packages import package_of
from editing import read
from ops_table import parts
from quantization_methods import PAGE, ROWS, of_package
from tiny import looped_layer

from edgeloop.export.codes import Codes
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.quantize import quantize_checkpoint
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.model.codec import Palette
from edgeloop.runtime.model.weights import Matrix, sibling

TEXT = "Once upon a time there was a king who had a daughter. " * 8
CODES = [name for name, row in ROWS.items() if not row.tables and row.model == "demo"]


def test_the_page_has_rows_of_methods() -> None:
    found = parts(PAGE.read_text(encoding="utf-8"), "quantization_methods.py")[1]
    names = [name for name in re.findall(r"(?m)^\| ([^|]+?) \|", found) if name not in ("methods", "---")]
    assert names == [name for name in ROWS if name in names]


def fitted(folder: Path, name: str, out: Path) -> Codes:
    with ExitStack() as stack:
        ROWS[name].change(stack)
        recipe = Recipe.palettes() if ROWS[name].tables else Recipe.named("int4", 32)
        return quantize_checkpoint(folder, TEXT, out, recipe=recipe).codes


def test_every_switch_gives_other_codes_and_is_undone(tmp_path: Path) -> None:
    folder = looped_layer(tmp_path / "looped", max_position_embeddings=32)
    found = {name: fitted(folder, name, tmp_path / name).about.numbers for name in CODES}
    assert len(set(found.values())) == len(CODES)
    assert fitted(folder, CODES[0], tmp_path / "again").about.numbers == found[CODES[0]]


def test_a_routed_model_can_be_fitted_as_if_it_had_no_router(
    tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    names = [name for name, row in ROWS.items() if row.model == "routed"]
    folder = tiny_once("edgeloop-routed")
    assert len({fitted(folder, name, tmp_path / name).about.numbers for name in names}) == len(names) == 2


def test_values_are_those_of_the_package(tiny_once: Callable[[str], Path], tmp_path: Path) -> None:
    """By each part's name; a package of other tables has none of these rows."""
    pytest.importorskip("coremltools")
    folder = tiny_once("edgeloop")
    codes = fitted(folder, "tables, all methods", tmp_path / "codes")
    report = export_bundle(folder, tmp_path / "bundle", codes=tmp_path / "codes", targets=["coreml"])
    reading, package = read(folder), package_of(Bundle.open(report.bundle))
    found = of_package(package, codes, reading)
    for name, weight in reading.program.weights.items():
        if isinstance(weight, Matrix):
            palette = codes.of(reading)[name]
            assert isinstance(palette, Palette)
            whole = np.concatenate([found[sibling(name, part)] for part in weight.parts])
            np.testing.assert_array_equal(whole, palette.values())
    others = fitted(folder, "tables, k-means alone", tmp_path / "others")
    with pytest.raises(KeyError):
        of_package(package, others, reading)
