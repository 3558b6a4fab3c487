"""ONNX Runtime: prologue, block, epilogue (each also packed) and fill graphs over one external weights file."""

from __future__ import annotations

from pathlib import Path

import onnx

from ...quant.recipe import Recipe
from ...runtime import manifest
from ...runtime.backend import shares_kv
from ...runtime.backends.onnx import OnnxBackend
from ...runtime.errors import ExportError
from ...runtime.kv import visible
from ...runtime.spec import Spec
from .. import rowwise
from ..bundle.writer import link
from ..fused import Numerics
from ..graphs import write_graphs
from ..oracle import Oracle
from ..parity import EXACT, SHIPPED, compare, compare_packed, trace, trace_packed
from ..target import Job
from ..weights import places, split_places

FOLDER = "onnx"
WEIGHTS = "weights.safetensors"
INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1  # MatMulNBits accuracy levels


class OnnxTarget:
    """The staged layout for the onnx engine."""

    name = "onnx"

    def check(self, spec: Spec, recipe: Recipe) -> None:
        """ExportError for depths that share K and V behind a sliding window: the operator does not do both."""
        if shares_kv(spec) and visible(spec) is not None:
            raise ExportError(
                f"the depths share K and V and attention sees {spec.sliding_window} tokens; "
                "target onnx takes one or the other, export with per-depth K and V"
            )

    def export(self, job: Job) -> manifest.Target:
        """The stages' graphs and their weights under onnx/, checked after every depth."""
        folder = job.folder / FOLDER
        folder.mkdir()
        link(job.weights, folder / WEIGHTS)
        numerics = Numerics(job.recipe.bits, job.recipe.group_size, INT8_ACTIVATIONS)
        oracle = Oracle.open(job.spec, folder / WEIGHTS, numerics)
        placed = places(folder / WEIGHTS)
        placed |= split_places(placed, job.spec)
        graphs: dict[str, Path] = {}
        for i, (name, stage) in enumerate(oracle.stages.items()):
            job.progress(f"onnx: {name} graph", i / (len(oracle.stages) + 2))
            graphs |= write_graphs(stage, folder, WEIGHTS, placed)
        job.progress("onnx: parity after every depth", len(oracle.stages) / (len(oracle.stages) + 2))
        parity = check_parity(oracle, graphs)
        job.progress("onnx: done", 1.0)
        return manifest.Target(
            graphs={name: f"{FOLDER}/{path.name}" for name, path in graphs.items()},
            weights=f"{FOLDER}/{WEIGHTS}",
            parity=parity,
        )


def check_parity(oracle: Oracle, graphs: dict[str, Path]) -> manifest.Parity:
    """With float activations the graphs must equal the modules; as shipped, they must stay near them."""
    wanted, packed = trace(oracle), trace_packed(oracle)
    exact = {name: _with_float_activations(path) for name, path in graphs.items()}
    try:
        per_depth, logits = compare(trace(OnnxBackend(oracle.spec, exact)), wanted, "onnx", EXACT)
        compare_packed(trace_packed(OnnxBackend(oracle.spec, exact, packed=True)), packed, "onnx", EXACT)
    finally:
        for path in exact.values():
            path.unlink()
    _, shipped = compare(trace(OnnxBackend(oracle.spec, graphs)), wanted, "onnx", SHIPPED)
    compare_packed(trace_packed(OnnxBackend(oracle.spec, graphs, packed=True)), packed, "onnx", SHIPPED)
    return manifest.Parity(per_depth=per_depth, logits=logits, shipped=shipped, bound=SHIPPED)


def _with_float_activations(path: Path) -> Path:
    """A copy of the graph that computes in float32, beside it because its weights are found relative to it.

    onnxruntime's option mlas.qnbit.force_fp32 would do without a copy, but it leaves 8-bit matrices as they are.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = FLOAT_ACTIVATIONS
    rowwise.to_float(model.graph)
    copy = path.with_suffix(".float.onnx")
    onnx.save(model, copy)
    return copy
