"""ONNX Runtime: prologue, block, epilogue (each also packed) and fill graphs over one external weights file."""

from __future__ import annotations

from pathlib import Path

from ...quant.recipe import Recipe
from ...runtime import manifest
from ...runtime.backend import can_fill
from ...runtime.backends.onnx import OnnxBackend
from ...runtime.model.program import Program
from ..bundle.writer import link
from ..fused import Numerics
from ..lower.exact import with_float_activations
from ..lower.graph import Stored
from ..lower.onnx import check, write_graphs
from ..oracle import Oracle
from ..parity import EXACT, SHIPPED, compare, compare_packed, trace, trace_packed
from ..target import Job

FOLDER = "onnx"
WEIGHTS = "weights.safetensors"


class OnnxTarget:
    """The staged layout for the onnx engine."""

    name = "onnx"

    def check(self, program: Program, recipe: Recipe) -> None:
        """ExportError names the op that no graph computes."""
        check(program)

    def export(self, job: Job) -> manifest.Target:
        """The stages' graphs and their weights under onnx/, checked after every depth."""
        folder = job.folder / FOLDER
        folder.mkdir()
        link(job.weights, folder / WEIGHTS)
        program, stored = job.program, Stored.open(folder / WEIGHTS, job.recipe.group_size)
        job.progress("onnx: graphs", 0.0)
        graphs = write_graphs(program, stored, can_fill(program))
        job.progress("onnx: parity after every depth", 0.2)
        oracle = Oracle.open(
            job.program, folder / WEIGHTS, Numerics(job.recipe.bits, job.recipe.group_size, 4)
        )
        parity = check_parity(oracle, graphs)
        job.progress("onnx: done", 1.0)
        return manifest.Target(
            graphs={name: f"{FOLDER}/{path.name}" for name, path in graphs.items()},
            weights=f"{FOLDER}/{WEIGHTS}",
            parity=parity,
        )


def check_parity(oracle: Oracle, graphs: dict[str, Path]) -> manifest.Parity:
    """With float activations the graphs must equal the oracle; as shipped, they must stay near it."""
    wanted, packed = trace(oracle), trace_packed(oracle)
    exact = {name: with_float_activations(path) for name, path in graphs.items()}
    try:
        per_depth, logits = compare(trace(OnnxBackend(oracle.program, exact)), wanted, "onnx", EXACT)
        compare_packed(trace_packed(OnnxBackend(oracle.program, exact, packed=True)), packed, "onnx", EXACT)
    finally:
        for path in exact.values():
            path.unlink()
    _, shipped = compare(trace(OnnxBackend(oracle.program, graphs)), wanted, "onnx", SHIPPED)
    compare_packed(trace_packed(OnnxBackend(oracle.program, graphs, packed=True)), packed, "onnx", SHIPPED)
    return manifest.Parity(per_depth=per_depth, logits=logits, shipped=shipped, bound=SHIPPED)
