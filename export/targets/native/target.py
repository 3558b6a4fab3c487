"""The lane engine: the whole model in one file, whose codes and scales are those of every target, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.engines.native.engine import NativeBackend
from ....runtime.engines.native.file import NAME, LanesFile, write_lanes
from ....runtime.engines.native.library import Activations
from ....runtime.engines.native.tables import FIELDS
from ....runtime.engines.native.text_format import section
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError, ParityError
from ....runtime.model import ops
from ....runtime.model.program import Program
from ....runtime.model.stored import map_tensors
from ...bounds import EXACT, KERNELS, REPORT, activations_of
from ...parity import Expected
from ...target import Job, check_tables
from .app_tables import app_tables

FOLDER = "native"


class NativeTarget:
    """The staged layout for the native engine."""

    name = "native"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError, which names the op that the engine does not compute."""
        check_tables(recipe, self.name)
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
        # What is read of a mapping stays in memory, so that each lives as long as one step: the stored weights and the
        # file are never there at once as a whole.
        write_lanes(
            path,
            program,
            map_tensors(job.weights),
            sizes,
            lambda share: job.progress("native: weights", 0.1 * share),
            section({**job.text_tables, **app_tables(job)}),
        )
        check_tensors(path, program, job.weights)
        job.progress("native: parity after every depth", 0.2)
        wanted = Expected.both(
            ReferenceBackend(program, map_tensors(job.weights), sizes), activations_of(job.recipe, self.name)
        )
        job.progress("native: parity of the engine", 0.8)
        parity = check_parity(program, path, *wanted)
        job.progress("native: done", 1.0)
        name = f"{FOLDER}/{NAME}"
        return manifest.Target(graphs={}, weights=name, parity=parity)


def check_tensors(path: Path, program: Program, weights: Path) -> None:
    """Raise ParityError unless the file at ``path`` holds the tensors of the file ``weights``, all of them, bit for
    bit."""
    left = set(map_tensors(weights))
    for name, pieces in LanesFile(path, program).tensors():
        left.discard(name)
        stored = map_tensors(weights)[name].reshape(-1).view(np.uint8)  # mapped anew: see export
        at = 0
        for piece in pieces:
            found = piece.reshape(-1).view(np.uint8)
            if not np.array_equal(found, stored[at : (at := at + len(found))]):
                raise ParityError(f"{path} holds other numbers than were stored in {name}; {REPORT}")
        if at != len(stored):
            raise ParityError(f"{path} has {at} bytes of {name}, {len(stored)} were stored; {REPORT}")
    if left:
        raise ParityError(f"{path} lacks {min(left)}; {REPORT}")


def check_parity(program: Program, path: Path, wanted: Expected, rounded: Expected | None) -> manifest.Parity:
    """Check that the file computes what is ``wanted`` with float activations, and as shipped what is ``rounded``: with
    int8 ones, where there are any."""

    def check(
        activations: Activations, expected: Expected, what: str, advice: str
    ) -> tuple[tuple[float, ...], float]:
        backend = NativeBackend(program, path, activations=activations)
        try:
            return expected.check(what, backend, advice=advice)
        finally:
            backend.close()

    per_depth, logits = check(Activations.FLOAT, wanted, "native with float activations", REPORT)
    if rounded is None:
        return manifest.Parity(per_depth, logits, logits, EXACT)
    _, shipped = check(Activations.INT8, rounded, "native with int8 activations", KERNELS)
    return manifest.Parity(per_depth, logits, shipped, rounded.logits)
