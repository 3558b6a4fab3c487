"""What each method adds to fitted codes, in docs/quantization.md: tests/quantization_methods.py FOLDER [ROW]

Each row switches one method of ``edgeloop quantize`` off, or leaves one alone, and is measured as the rows of
tests/quantization_table.py are, whose FOLDER it needs. The rows of tables are Core ML's: they are exported, read back
from the package that was saved, and its values read the text as floats, since no Core ML runs here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import quantization_peers
import quantization_table
from coreml_packages import package_of, palettes_of
from msgspec import structs
from ops_table import parts
from quantization_table import FLOATS, MODELS, PAGE, edgeloop, result
from torch import Tensor

from edgeloop.export import fitted, loop_gptq
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.codes import Codes
from edgeloop.export.families import read_checkpoint
from edgeloop.export.family import Reading
from edgeloop.export.layerwise import Step, Stream
from edgeloop.export.loop_gptq import LoopGPTQ
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.quantize import quantize_checkpoint
from edgeloop.quant import gptq
from edgeloop.quant.pack import full_range, quantize
from edgeloop.quant.palette import palettize
from edgeloop.quant.recipe import Recipe
from edgeloop.quant.scales import searched
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.model.codec import Grouped, Palette
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.weights import Matrix, sibling

Change = Callable[[ExitStack], object]
"""Switches something off until the stack is left."""


class OneDepth(LoopGPTQ):
    """Of a matrix that is met at several depths, the inputs of one alone."""

    def _collect(self, step: Step, exact: Stream, coded: Stream, windows: int) -> None:
        if step.stage == "prologue" or step.depth == self.at:
            super()._collect(step, exact, coded, windows)

    @property
    def at(self) -> int:
        """The depth that counts."""
        return 0


class LastDepth(OneDepth):
    """That of the last depth."""

    @property
    def at(self) -> int:
        """The depth that counts."""
        return self._program.depths - 1


class NoDrift(LoopGPTQ):
    """What codes have changed before is not undone."""

    def _collect(self, step: Step, exact: Stream, coded: Stream, windows: int) -> None:
        super()._collect(step, exact, coded, windows)
        for name in step.matrices:
            for copy in range(self._program.matrix(name).copies):
                self._drifts.take((name, copy))


class EveryDepth(LoopGPTQ):
    """Of a routed model all tokens at every depth, whatever the router says, as if it had none."""

    def __init__(self, program: Program, *given: Any) -> None:
        super().__init__(structs.replace(program, routing=None), *given)


def fitter(kind: type[LoopGPTQ], stack: ExitStack) -> None:
    """Fit by another class."""
    stack.enter_context(patch.object(fitted, "LoopGPTQ", kind))


def scales_alone(stack: ExitStack) -> None:
    """The nearest codes to searched scales: nothing is known of inputs."""

    def nearest(part: Tensor, hessian: Tensor, bits: int, group: int, *_: object) -> Grouped:
        return quantize(part, bits, group, searched)

    stack.enter_context(patch.object(loop_gptq, "gptq", nearest))


def largest_scales(stack: ExitStack) -> None:
    """Scales that keep a group's largest weight."""
    stack.enter_context(patch.object(gptq, "searched", lambda x, bits, importance=None: full_range(x, bits)))


def tables_alone(stack: ExitStack) -> None:
    """k-means of the weights, and the nearest entries."""
    stack.enter_context(
        patch.object(loop_gptq, "fitted_palette", lambda part, rows, *_: palettize(part, rows))
    )


@dataclass(frozen=True)
class Row:
    """What is switched off, of codes in groups of 32 or of Core ML's tables, of which model."""

    change: Change = lambda stack: None
    tables: bool = False
    model: str = "demo"


ROWS = {
    "all methods": Row(),
    "inputs of the last depth alone": Row(partial(fitter, LastDepth)),
    "inputs of the first depth alone": Row(partial(fitter, OneDepth)),
    "nothing undone of what codes changed before": Row(partial(fitter, NoDrift)),
    "scales of the largest weight": Row(largest_scales),
    "searched scales alone": Row(scales_alone),
    "tables, all methods": Row(tables=True),
    "tables, inputs of the last depth alone": Row(partial(fitter, LastDepth), tables=True),
    "tables, k-means alone": Row(tables_alone, tables=True),
    "routed, all methods": Row(model="routed"),
    "routed, every token at every depth": Row(partial(fitter, EveryDepth), model="routed"),
}


def of_package(package: Path, codes: Codes, reading: Reading) -> dict[str, F32]:
    """The values [N, K] of each part of a matrix by its canonical name, as the saved package has them.

    Matrices lie there without names: a row is found by its indices, and its values are by the package's own table.
    """
    rows = {}
    for indices, tables in palettes_of(package):
        values = Palette(indices.astype(np.uint8), tables).values()
        rows |= {
            index.tobytes(): value for index, value in zip(indices.astype(np.uint8), values, strict=True)
        }
    found = {}
    for name, made in codes.of(reading).items():
        assert isinstance(made, Palette)
        whole, first = np.stack([rows[index.tobytes()] for index in made.indices]), 0
        for part, size in reading.program.matrix(name).parts.items():
            found[sibling(name, part)] = whole[first : first + size]
            first += size
    return found


def measured(folder: Path, row: Row) -> dict[str, Any]:
    """A model with codes, or tables, that are fitted as ``row`` says, beside its floats."""
    made, bundle, checkpoint = folder / "codes", folder / "methods-bundle", MODELS[row.model]
    text = (folder / "calibration.txt").read_text(encoding="ascii")
    recipe = Recipe.palettes() if row.tables else Recipe.named("int4", 32)
    with ExitStack() as stack:
        row.change(stack)
        codes = quantize_checkpoint(checkpoint, text, made, recipe=recipe, force=True).codes
    report = export_bundle(
        checkpoint, bundle, codes=made, targets=["coreml" if row.tables else "native"], force=True
    )
    stored = codes.stored.values()
    bits = sum(array.nbytes * (4 if array.dtype == np.uint8 and row.tables else 8) for array in stored)
    if row.tables:
        reading = read_checkpoint(Checkpoint.open(checkpoint))
        values = of_package(package_of(Bundle.open(report.bundle)), codes, reading)
        found = quantization_peers.measured(folder, lambda matrix, weight: (values[matrix], 0))
    else:
        words = "eval", bundle, "--text", "validation.txt", *quantization_table.MEASURED
        found = edgeloop(*words, "--against", folder / row.model / FLOATS, folder=folder)
    weights = sum(
        matrix.copies * matrix.rows * matrix.columns for matrix in matrices(report.manifest.program)
    )
    for path in (made, bundle):
        shutil.rmtree(path)
    return {**found, "bits_a_matrix_weight": bits / weights}


def matrices(program: Program) -> list[Matrix]:
    """The matrices of ``program``, all of which are stored in one way here."""
    return [weight for weight in program.weights.values() if isinstance(weight, Matrix)]


def write(folder: Path) -> None:
    """Put the rows that are there into the page."""
    paths = {name: result(folder, "methods", name) for name in ROWS}
    rows = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}
    tables = ({name: rows[name] for name in rows if (ROWS[name].model == model)} for model in MODELS)
    text = "\n\n".join(quantization_peers.table(each, "methods") for each in tables if each)
    before, _, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    PAGE.write_text(before + text + after, encoding="utf-8")


def main(folder: Path, names: list[str]) -> None:
    """Measure the rows ``names``, or all that are not there yet."""
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"there are no rows {unknown}; choose from {', '.join(map(repr, ROWS))}")
    folder = folder.absolute()
    if not (folder / "demo" / FLOATS).is_dir():
        raise SystemExit(f"{folder} has no floats to measure against: run tests/quantization_table.py first")
    (folder / "methods").mkdir(exist_ok=True)
    for name, row in ROWS.items():
        path = result(folder, "methods", name)
        if name in names or not (names or path.is_file()):
            path.write_text(json.dumps(measured(folder, row), indent=1), encoding="utf-8")
            write(folder)
    write(folder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("wanted: tests/quantization_methods.py FOLDER [ROW]")
    main(Path(sys.argv[1]), sys.argv[2:])
