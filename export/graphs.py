"""A stage module becomes an ONNX graph whose weights lie in the bundle's one safetensors file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from ..runtime.backends.onnx import PACKED
from .packing import pack_graph
from .stages import Stage
from .weights import Place

OPSET = 21


def example_inputs(stage: Stage, lanes: int = 2, tokens: int = 3, capacity: int = 8) -> tuple[Tensor, ...]:
    """One valid call of ``stage``; sizes that differ, so that no dimension is mistaken for another."""
    spec = stage.spec
    shape = (lanes, spec.kv_heads, capacity, spec.head_dim)
    given = {
        "ids": torch.zeros(lanes, tokens, dtype=torch.int64),
        "state": torch.zeros(lanes, tokens, spec.hidden_size),
        "depth": torch.zeros(lanes, dtype=torch.int64),
        "rows": torch.zeros(5, dtype=torch.int64),
        "positions": torch.arange(tokens).expand(lanes, tokens).contiguous(),
        "last": torch.full((lanes,), tokens - 1, dtype=torch.int32),
        "longest": torch.tensor([tokens], dtype=torch.int32),
        "tokens": torch.full((lanes,), tokens, dtype=torch.int32),
        "fresh": torch.tensor([tokens]),
        "cos": torch.zeros(9, spec.head_dim // 2),
        "sin": torch.zeros(9, spec.head_dim // 2),
    }
    return tuple(given[n] if n in given else torch.zeros(shape) for n in stage.input_names)


def dynamic_shapes(stage: Stage) -> list[dict[int, torch.export.Dim] | None]:
    """Lanes B, new tokens S, cache capacity C, rows N and positions P are free in every graph."""
    b, s, c, n, p = (torch.export.Dim(x, min=1, max=1 << 20) for x in ("B", "S", "C", "N", "P"))
    named = {
        "ids": {0: b, 1: s},
        "state": {0: b, 1: s},
        "depth": {0: b},
        "rows": {0: n},
        "positions": {0: b, 1: s},
        "last": {0: b},
        "longest": None,
        "tokens": {0: b},
        "fresh": None,
        "cos": {0: p},
        "sin": {0: p},
    }
    return [named.get(x, {0: b, 2: c}) for x in stage.input_names]


def to_onnx(stage: Stage) -> ir.Model:
    """The stage's graph; initializers still hold their torch tensors."""
    stage.eval()
    first, *rest = dynamic_shapes(stage)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                stage,
                example_inputs(stage),
                dynamo=True,
                dynamic_shapes=(first, tuple(rest)) if rest else (first,),
                input_names=stage.input_names,
                output_names=stage.output_names,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program.model


def write_graphs(stage: Stage, folder: Path, weights: str, placed: dict[str, Place]) -> dict[str, Path]:
    """The stage's graph and, but for fill, its packed form, by name; see ``write_graph``."""
    graphs = {stage.name: write_graph(stage, folder, weights, placed)}
    if stage.name != "fill":
        model = ir.load(graphs[stage.name])
        pack_graph(model, stage.spec)
        _remove_inner_shapes(model)
        graphs[stage.name + PACKED] = folder / f"{stage.name}{PACKED}.onnx"
        ir.save(model, graphs[stage.name + PACKED])
    return graphs


def write_graph(stage: Stage, folder: Path, weights: str, placed: dict[str, Place]) -> Path:
    """Write ``folder``/<stage>.onnx, whose large initializers point into ``folder``/``weights``."""
    model = to_onnx(stage)
    for name, value in model.graph.initializers.items():
        if name not in placed or value.const_value is None:
            continue
        tensor, place = value.const_value, placed[name]
        value.const_value = ir.ExternalTensor(
            weights,
            place.offset,
            place.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=folder,
        )
    for node in model.graph:
        if node.op_type == "SkipSimplifiedLayerNormalization":
            for unused in node.outputs[1:3]:
                unused.name = ""
    if stage.shared:
        _remove_inner_shapes(model)
    _remove_unused_initializers(model)
    _remove_notes(model)
    path = folder / f"{stage.name}.onnx"
    ir.save(model, path)
    return path


def _remove_unused_initializers(model: ir.Model) -> None:
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]


def _remove_inner_shapes(model: ir.Model) -> None:
    """K and V may have fewer tokens than the shapes at export say; engines find the right ones themselves."""
    outer = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in outer:
                value.shape = None


def _remove_notes(model: ir.Model) -> None:
    """The exporter notes where in the source, with this machine's paths, every node came from."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for noted in (model, graph, *graph, *values):
        noted.metadata_props.clear()
        noted.doc_string = None
