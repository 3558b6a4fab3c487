"""The contract of an export target: from stored weights to artifacts in the bundle.

A target is one folder in ``targets/`` with one class, and one line in the table there. What a user may set
beside what every export has is in its options (``options.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..quant.recipe import Recipe
from ..runtime.bundle import manifest
from ..runtime.errors import ExportError
from ..runtime.model.program import Program

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """What every target gets: the architecture, the stored weights, and the folder that becomes the bundle.

    ``tokenizer``: the file that will be the bundle's, if it has one. ``text_tables``: what hosts without Python have of
    it, by the tags of a text section. ``name``: of the checkpoint's folder.
    """

    program: Program
    recipe: Recipe
    weights: Path
    folder: Path
    progress: Progress
    tokenizer: Path | None = None
    text_tables: Mapping[int, bytes] = field(default_factory=dict)
    name: str = ""


def check_shared(program: Program, target: str) -> None:
    """Raise ExportError for attention with matrices for each depth, which ``target`` has no operators for."""
    if program.own_matrices:
        raise ExportError(
            f"attention has matrices of its own for each depth, which target {target} does not take; export to onnx"
        )


def check_deltas(program: Program, recipe: Recipe, target: str) -> None:
    """Raise ExportError for deltas that are stored as codes, which ``target`` has no operators for."""
    if (delta := recipe.coded_deltas(program.weights)) is not None:
        raise ExportError(
            f"recipe {recipe.name} stores {delta} as {recipe.deltas}, which target {target} does not multiply by; give "
            'deltas = "float16", or export for target native'
        )


def check_tables(recipe: Recipe, target: str) -> None:
    """Raise ExportError for matrices in tables of values, which ``target`` has no operators for."""
    if recipe.has_tables:
        raise ExportError(
            f"recipe {recipe.name} has matrices in tables of values, which target {target} does not hold; use --quant "
            "int4, or export for target coreml"
        )


class Target(Protocol):
    """One export target."""

    name: str

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError, by name, for what the target cannot hold, before any work."""
        ...

    def export(self, job: Job) -> manifest.Target:
        """Write artifacts below ``job.folder``/<name>, compare them with the reference engine, and return their
        description.

        ParityError when an artifact does not compute what that computes.
        """
        ...
