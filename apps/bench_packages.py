"""Core ML packages as contenders of ``edgeloop compare``: bytes only, because nothing runs them off a Mac."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..export.family import Reading
from ..export.stored import write_weights
from ..export.targets.coreml.constants import Store
from ..export.targets.coreml.package import write_package
from ..export.targets.coreml.plan import PackagePlan
from ..export.unrolled import unroll
from ..quant.recipe import Recipe
from ..runtime.engines.coreml.interpreter import MODEL, WEIGHTS
from ..runtime.timing import Stopwatch
from .console import Console, Progress
from .quantities import byte_count


@dataclass(frozen=True)
class PackageSize:
    """One package: its bytes, and the time that it took to write, from checkpoint to file, without the check."""

    name: str
    quant: str
    functions: int
    weights: int
    program: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes of weights and program."""
        return self.weights + self.program


def measure_packages(
    reading: Reading, group_sizes: list[int], work: Path, progress: Progress
) -> list[PackageSize]:
    """The packages of a recursive model and of the same model unrolled, in blocks of each size and in tables."""
    recipes = [Recipe.named("int4", group) for group in group_sizes] + [Recipe.palettes()]
    models = [("recursive", reading), ("unrolled", unroll(reading))]
    found = []
    for i, recipe in enumerate(recipes):
        quant = "tables" if recipe.palettized else f"groups of {recipe.group_size}"
        for j, (name, model) in enumerate(models):
            progress(f"{name}, {quant}", (i + j / 2) / len(recipes))
            found.append(_measure(name, quant, model, recipe, work / f"{name}{i}"))
    return found


def _measure(name: str, quant: str, reading: Reading, recipe: Recipe, folder: Path) -> PackageSize:
    folder.mkdir()
    watch, stored, package = Stopwatch(), folder / "stored", folder / "model.mlpackage"
    write_weights(reading, recipe, stored)
    plan = PackagePlan(reading.program)
    write_package(plan, Store(stored, recipe, plan.program), package, {}, lambda step, part: None)
    seconds = watch.ms / 1000
    weights, program = ((package / file).stat().st_size for file in (WEIGHTS, MODEL))
    for path in (stored, package / WEIGHTS):
        path.unlink()
    return PackageSize(name, quant, len(plan.functions), weights, program, seconds)


def report_packages(console: Console, found: list[PackageSize]) -> None:
    """The table, or the same as JSON."""
    fields = ("name", "quant", "functions", "weights", "program", "seconds")
    if console.json:
        console.result({"packages": [{f: getattr(size, f) for f in fields} for size in found]})
        return
    bases = {size.quant: size.bytes for size in found if size.name == "recursive"}
    console.table(
        ("Core ML, int4", "weights in", "#functions", "#weights", "#program", "#package ÷ it", "#written in"),
        [
            (
                size.name,
                size.quant,
                str(size.functions),
                byte_count(size.weights),
                byte_count(size.program),
                f"{bases[size.quant] / size.bytes:.2f}",
                f"{size.seconds:.1f} s",
            )
            for size in found
        ],
    )
