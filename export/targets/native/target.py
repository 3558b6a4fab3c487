"""The lane engine: the whole model in one file, whose codes and scales are those of every target, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.engines.native.engine import NativeBackend
from ....runtime.engines.native.file import NAME, LanesFile, write_lanes
from ....runtime.engines.native.library import Activations
from ....runtime.engines.native.tables import FIELDS
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError, ParityError
from ....runtime.model import ops
from ....runtime.model.program import Program
from ....runtime.model.stored import Array, map_tensors
from ...bounds import EXACT, KERNELS, REPORT, activations_of
from ...parity import Expected
from ...target import Job

FOLDER = "native"


class NativeTarget:
    """The staged layout for the native engine."""

    name = "native"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError, which names the op that the engine does not compute."""
        if recipe.palettized:
            raise ExportError(
                "target native holds codes with scales, and no tables of values; use --quant int4"
            )
        for stage in program.stages:
            for op in stage.ops:
                if type(op) not in FIELDS:
                    raise ExportError(
                        f"target native does not take {ops.kind(op)}: the engine has no such op"
                    )

    def export(self, job: Job) -> manifest.Target:
        """Write native/model.lanes, read it back and compare it with the stored weights, and check it after every
        depth."""
        path, program = job.folder / FOLDER / NAME, job.program
        path.parent.mkdir()
        sizes = job.recipe.group_sizes(program.weights)
        stored = map_tensors(job.weights)
        write_lanes(
            path,
            program,
            stored,
            sizes,
            lambda share: job.progress("native: weights", 0.1 * share),
        )
        check_tensors(path, program, stored)
        job.progress("native: parity after every depth", 0.2)
        reference = ReferenceBackend(program, stored, sizes)
        parity = check_parity(reference, path, job.recipe)
        job.progress("native: done", 1.0)
        name = f"{FOLDER}/{NAME}"
        return manifest.Target(graphs={}, weights=name, parity=parity)


def check_tensors(path: Path, program: Program, stored: Mapping[str, Array]) -> None:
    """Raise ParityError unless the file at ``path`` holds the tensors ``stored``, all of them, bit for bit."""
    left = set(stored)
    for name, found in LanesFile(path, program).tensors():
        left.discard(name)
        if found.tobytes() != stored[name].tobytes():
            raise ParityError(f"{path} holds other numbers than were stored in {name}; {REPORT}")
    if left:
        raise ParityError(f"{path} lacks {min(left)}; {REPORT}")


def check_parity(reference: ReferenceBackend, path: Path, recipe: Recipe) -> manifest.Parity:
    """Check that the file equals the reference engine with float activations, and as shipped with int8 ones."""
    wanted, rounded = Expected.both(reference, activations_of(recipe, "native"))

    def check(
        activations: Activations, expected: Expected, what: str, advice: str
    ) -> tuple[tuple[float, ...], float]:
        backend = NativeBackend(reference.program, path, activations=activations)
        try:
            return expected.check(what, backend, advice=advice)
        finally:
            backend.close()

    per_depth, logits = check(Activations.FLOAT, wanted, "native with float activations", REPORT)
    if rounded is None:
        return manifest.Parity(per_depth, logits, logits, EXACT)
    _, shipped = check(Activations.INT8, rounded, "native with int8 activations", KERNELS)
    return manifest.Parity(per_depth, logits, shipped, rounded.logits)
