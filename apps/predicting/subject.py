"""What is predicted: a bundle, a checkpoint or a shape, as a program with the bits of its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import UsageError
from ...runtime.model.program import Program
from ...runtime.model.weights import Matrix

if TYPE_CHECKING:
    from ...export.synth_shapes import Shape

BY_LOGITS = ("confidence", "margin", "entropy", "kl", "entropy-diff", "stable")
"""Exit rules that look at the logits after every depth; the others look at states."""


@dataclass(frozen=True)
class Subject:
    """A model to be predicted. ``storage``: bits and group size of each matrix by name.

    ``file_bytes``: of the lane engine's file. ``exits``: the mean depth of each calibrated exit rule.
    """

    name: str
    program: Program
    storage: Mapping[str, tuple[int, int]]
    file_bytes: int
    exits: Mapping[str, float] = field(default_factory=dict)

    def stored(self, matrix: str) -> tuple[int, int]:
        """Return bits and group size of ``matrix``."""
        return self.storage[matrix]

    @property
    def quantization(self) -> str:
        """The bits of most of its numbers, in words."""
        count = dict[tuple[int, int], int]()
        for name, kind in self.storage.items():
            matrix = self.program.matrix(name)
            count[kind] = count.get(kind, 0) + matrix.copies * matrix.rows * matrix.columns
        bits, group = max(count, key=lambda kind: count[kind])
        if bits >= 16:
            return f"float{bits}"
        return f"int{bits}, " + (f"groups of {group}" if group else "a scale a row")


def of_bundle(folder: Path) -> Subject:
    """Return what a bundle holds; BundleError when it is none."""
    from ...runtime.bundle.folder import Bundle

    manifest = Bundle.open(folder, verify=False).manifest
    said = {
        name: manifest.quantization.storage(name)
        for name, weight in manifest.program.weights.items()
        if isinstance(weight, Matrix)
    }
    storage = {name: (each.bits, each.group_size) for name, each in said.items()}
    native = manifest.targets.get("native")
    size = manifest.files[native.weights].bytes if native else file_bytes(manifest.program, storage)
    exits = {name: rule.mean_depth for name, rule in manifest.exits.items()}
    return Subject(folder.name, manifest.program, storage, size, exits)


def of_program(name: str, program: Program, quant: str, group_size: int) -> Subject:
    """Return a model that is not exported yet, as ``quant`` would store it; UsageError for a name that is none."""
    from ...quant.recipe import Recipe

    formats = Recipe.named(quant, group_size).formats(program.weights)
    storage = {matrix: (each.bits, each.group_size) for matrix, each in formats.items()}
    return Subject(name, program, storage, file_bytes(program, storage))


def program_of(given: str, depths: int | None, lora_rank: int = 0) -> tuple[str, Program]:
    """Return the name and program of a checkpoint's folder, a file of a shape, or a shape by name."""
    from ...export.checkpoint import Checkpoint
    from ...export.families import read_checkpoint
    from ...export.synth_program import program_of_shape
    from ...export.synth_shapes import SHAPES
    from ...runtime.model.transform import with_depths
    from .shapes import read_shape, with_repeats

    if given in SHAPES or given.endswith(".toml"):
        shape: Shape = SHAPES[given] if given in SHAPES else read_shape(given)
        name = given if given in SHAPES else Path(given).stem
        shape = with_repeats(shape, depths) if depths is not None else shape
        return name, program_of_shape(shape, lora_rank if shape.family == "mor" else 0)
    if not Path(given).exists() and "/" not in given:
        raise UsageError(
            f"{given!r:.60} is no folder, no file and no shape; `edgeloop synth --list` names the shapes"
        )
    program = read_checkpoint(Checkpoint.open(Path(given))).program
    return Path(given).name, program if depths is None else with_depths(program, depths)


def file_bytes(program: Program, storage: Mapping[str, tuple[int, int]]) -> int:
    """Return the bytes of the lane engine's file of ``program``."""
    from ...runtime.engines.native.format import Storage
    from ...runtime.engines.native.layout import Stored, layout
    from ...runtime.model.codec import group_of

    kinds = {32: Storage.F32, 16: Storage.F16, 8: Storage.I8, 4: Storage.I4}
    stored = {
        name: Stored(
            kinds[bits], 0 if bits >= 16 else group_of(program.matrix(name).columns, group), Storage.F16
        )
        for name, (bits, group) in storage.items()
    }
    return layout(program, stored).file_bytes
