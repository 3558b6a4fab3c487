"""ONNX Runtime: prologue, block, epilogue (each also packed) and fill graphs over one external weights file."""

from __future__ import annotations

from pathlib import Path

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.engines.backend import can_fill
from ....runtime.engines.onnx.engine import OnnxBackend
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError
from ....runtime.model.activations import Activations
from ....runtime.model.program import Program
from ...bounds import EXACT, KERNELS, REPORT, activations_of
from ...bundle.writer import link
from ...lower.exact import with_float_activations
from ...lower.graph import Stored
from ...lower.onnx import check, write_graphs
from ...parity import Expected
from ...reference import reference_engine
from ...target import Job, check_deltas, check_tables

FOLDER = "onnx"
WEIGHTS = "weights.safetensors"


class OnnxTarget:
    """The staged layout for the onnx engine."""

    name = "onnx"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError, which names the op that no graph computes, or the matrix that no operator reads."""
        check(program)
        check_tables(recipe, self.name)
        check_deltas(program, recipe, self.name)
        for name, storage in recipe.formats(program.weights).items():
            if storage.bits == 4 and not storage.group_size:
                raise ExportError(
                    f"{name} is stored as {storage}, and ONNX Runtime's operators want groups of 4-bit weights; "
                    "give it groups, or export for target native or coreml"
                )

    def export(self, job: Job) -> manifest.Target:
        """Write the stages' graphs and their weights under onnx/, checked after every depth."""
        folder = job.folder / FOLDER
        folder.mkdir()
        link(job.weights, folder / WEIGHTS)
        program, stored = (
            job.program,
            Stored.open(folder / WEIGHTS, job.recipe.group_sizes(job.program.weights)),
        )
        job.progress("onnx: graphs", 0.0)
        graphs = write_graphs(program, stored, can_fill(program), packed=not program.encoder)
        job.progress("onnx: parity after every depth", 0.2)
        reference = reference_engine(program, folder / WEIGHTS, job.recipe)
        parity = check_parity(reference, graphs, activations_of(job.recipe, "onnx"))
        job.progress("onnx: done", 1.0)
        return manifest.Target(
            graphs={name: f"{FOLDER}/{path.name}" for name, path in graphs.items()},
            weights=f"{FOLDER}/{WEIGHTS}",
            parity=parity,
        )


def check_parity(
    reference: ReferenceBackend, graphs: dict[str, Path], activations: Activations | None
) -> manifest.Parity:
    """Check that the graphs equal the reference engine with float activations, and as shipped with ``activations``."""
    program = reference.program

    def check(
        paths: dict[str, Path], wanted: Expected, what: str, advice: str
    ) -> tuple[tuple[float, ...], float]:
        packed = None if program.encoder else OnnxBackend(program, paths, packed=True)
        return wanted.check(what, OnnxBackend(program, paths), packed, advice)

    wanted, rounded = Expected.both(reference, activations)
    if rounded is None:
        per_depth, logits = check(graphs, wanted, "onnx", REPORT)
        return manifest.Parity(per_depth, logits, logits, EXACT)
    exact = {name: with_float_activations(path) for name, path in graphs.items()}
    try:
        per_depth, logits = check(exact, wanted, "onnx with float activations", REPORT)
    finally:
        for path in exact.values():
            path.unlink()
    _, shipped = check(graphs, rounded, "onnx with int8 activations", KERNELS)
    return manifest.Parity(per_depth, logits, shipped, rounded.logits)
