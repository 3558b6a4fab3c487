"""ONNX graphs from a program: one function for each op, and the graph of each stage.

Where ONNX Runtime has a fused operator for what some ops compute together, it is used (docs/ContribOperators.md of
onnxruntime: MatMulNBits, GatherBlockQuantized, GroupQueryAttention, RotaryEmbedding, SimplifiedLayerNormalization,
SkipSimplifiedLayerNormalization); standard operators elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...runtime.engines.onnx.engine import graph_name
from ...runtime.errors import ExportError
from ...runtime.model import ops
from ...runtime.model.program import Program, Stage
from ...runtime.model.sizes import output_size
from ...runtime.model.transform import keys_values
from . import attention, elementwise, matrices
from .fresh import FreshRows, with_fresh
from .graph import Graph, StageValue, Stored
from .values import Values

LOWERINGS: Mapping[type, Callable[[Graph, Values, Any], None]] = {
    ops.Embed: matrices.embed,
    ops.Norm: elementwise.norm,
    ops.Linear: matrices.linear,
    ops.Rotate: attention.rotate,
    ops.Attend: attention.attend,
    ops.AttendLearned: attention.attend_learned,
    ops.Act: elementwise.acted,
    ops.Add: elementwise.add,
    ops.Mul: elementwise.mul,
    ops.Scale: elementwise.scale,
    ops.Softcap: elementwise.softcap,
    ops.Concat: elementwise.concat,
    ops.Slice: elementwise.cut,
    ops.Experts: matrices.experts,
    FreshRows: elementwise.fresh,
}
REFUSED: Mapping[type, str] = {
    ops.AttendTwice: "it reads two slots of a lane, and a graph gets one",
    ops.Shift: "it keeps a row of each lane from call to call, and graphs keep K/V only",
}
"""Ops that no graph computes, and why."""


def check(program: Program) -> None:
    """Raise ExportError, which names the first op that no graph computes."""
    for stage in program.stages:
        for op in stage.ops:
            if type(op) in REFUSED:
                raise ExportError(f"target onnx does not take {ops.kind(op)}: {REFUSED[type(op)]}")
            if isinstance(op, ops.Attend) and (reason := attention.problem(program, op)):
                raise ExportError(reason)


def write_graphs(program: Program, stored: Stored, fill: bool, packed: bool = True) -> dict[str, Path]:
    """Write the graphs of all stages beside the weights, all but ``fill`` also ``packed``; return the files by name."""
    numbers, forms = range(len(program.loop.blocks)), (False, True) if packed else (False,)
    stages = [("prologue", 0), *(("block", n) for n in numbers), ("epilogue", 0)]
    wanted = [(stage, number, form) for stage, number in stages for form in forms]
    wanted += [("fill", number, False) for number in numbers if fill]
    graphs = {}
    for stage, number, form in wanted:
        name = graph_name(stage, number, form)
        graphs[name] = stored.file.parent / f"{name}.onnx"
        ir.save(stage_graph(program, stored, stage, number, form), graphs[name])
    return graphs


def stage_graph(
    program: Program, stored: Stored, stage: str, number: int = 0, packed: bool = False
) -> ir.Model:
    """Return the graph of ``prologue``, ``block``, ``fill`` (of the loop's block with that number) or ``epilogue``."""
    graph = Graph(program, stored, packed)
    if stage == "prologue":
        return _with_outputs(graph, program.prologue, "state")
    if stage == "epilogue":
        return _with_logits(graph, program.epilogue)
    block = program.loop.blocks[number]
    if stage == "fill":
        return _with_keys_values(graph, keys_values(block))
    return _with_outputs(graph, block, "next")


def whole_graph(program: Program, stored: Stored) -> ir.Model:
    """Return the graph from ids to logits of a program that has all of its layers in its prologue, without depths."""
    return _with_logits(Graph(program, stored), program.prologue)


def _with_outputs(graph: Graph, stage: Stage, output: str) -> ir.Model:
    values = write_ops(graph, stage, graph.program.shares_kv and output == "next")
    parts = [values[name].value for name in stage.outputs]
    state = graph.one("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]
    shape = ("N", 1) if graph.packed else ("B", "S")
    return graph.model({output: (state, (*shape, graph.program.width))})


def _with_logits(graph: Graph, stage: Stage) -> ir.Model:
    head, values = graph.program.head, write_ops(graph, stage)
    chosen = Values(graph, attention.rotate_now)
    for name, given in zip(head.inputs, stage.outputs, strict=True):
        x = values[given]
        flat = graph.one("Reshape", x.value, graph.numbers(-1, x.size))
        chosen[name] = StageValue(graph.one("Gather", flat, graph.given("rows"), axis=0), x.size)
    graph.lanes = False
    _write(graph, chosen, head.ops)
    (logits,) = head.outputs
    return graph.model({"logits": (chosen[logits].value, ("N", output_size(graph.program)))})


def _with_keys_values(graph: Graph, stage: Stage) -> ir.Model:
    values, outputs = write_ops(graph, stage), dict[str, tuple[ir.Value, Sequence[str | int]]]()
    for i, name in enumerate(stage.outputs):
        rows = values[name]
        outputs[f"{('key', 'value')[i % 2]}.{i // 2}"] = rows.value, ("B", "S", rows.size)
    return graph.model(outputs)


def write_ops(graph: Graph, stage: Stage, shared: bool = False) -> Values:
    """Write the ops of ``stage`` and return its values. ``shared``: its depths share K/V."""
    values = Values(graph, attention.rotate_now)
    if stage is not graph.program.prologue:
        carries = graph.program.loop.carries
        sizes, parts = [carry.width for carry in carries], [graph.state()]
        if len(carries) > 1:
            parts = list(graph.node("Split", *parts, graph.numbers(*sizes), outputs=len(sizes), axis=-1))
        for name, part, size in zip(stage.inputs, parts, sizes, strict=True):
            values[name] = StageValue(part, size)
    graph.shared = shared
    _write(graph, values, with_fresh(stage.ops, stage.outputs) if shared else stage.ops)
    return values


def _write(graph: Graph, values: Values, found: Iterable[ops.Op | FreshRows]) -> None:
    for op in found:
        LOWERINGS[type(op)](graph, values, op)
