"""The packed form of a graph: the same operators on the valid rows only, and attention between two gathers.

Of the lanes of a call that serves many sequences most are idle or padded. Matrices and norms do not care which row
is whose: here they see N rows, the valid ones. Only attention sees B lanes of S tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..runtime.spec import Spec

ATTENTION = "GroupQueryAttention"
ROWS = ("state", "ids", "next")
"""What loses its lanes: [B, S, …] becomes [N, 1, …]."""


def pack_graph(model: ir.Model, spec: Spec) -> None:
    """Rewrite the graph of a stage of ``spec`` in place, with the inputs of ``runtime/packed.py``.

    depth [B] becomes row_depth [N], and there are three more where the stage has attention: ``spread`` [B, S], the row
    of each lane's tokens; ``spread_new`` [B, S or 0], the same for K and V, which may have no rows; ``kept`` [N], the
    place of each row in the flattened B·S.
    """
    graph = model.graph
    spread, spread_new = _index("spread", "B", "S"), _index("spread_new", "B", "S_new")
    kept = _index("kept", "N")
    attentions = [node for node in graph if node.op_type == ATTENTION]
    heads, kv_heads = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for i, node in enumerate(attentions):
        for k in range(3):  # query, key, value; one alone is packed queries, keys and values
            if (rows := node.inputs[k]) is not None:
                together = heads + 2 * kv_heads if node.inputs[1] is None else heads
                flat = _flat(graph, f"packed_{i}_{k}", -1, kv_heads if k else together)
                shaped = _before(graph, node, "Reshape", [rows, flat])
                lanes = _before(graph, node, "Gather", [shaped, spread_new if k else spread])
                node.replace_input_with(k, lanes)
        out = node.outputs[0]
        flat = _flat(graph, f"packed_{i}_out", -1, 1, heads)
        reshape = ir.node("Reshape", [out, flat])
        gather = ir.node("Gather", [reshape.outputs[0], kept], {"axis": 0})
        ir.convenience.replace_all_uses_with(out, gather.outputs[0])
        reshape.replace_input_with(0, out)
        graph.insert_after(node, [reshape, gather])
    for value in [*graph.inputs, *graph.outputs]:
        if value.name in ROWS:
            assert value.shape is not None
            value.shape = ir.Shape(("N", 1, *list(value.shape)[2:]))
        elif value.name == "depth":
            value.name, value.shape = "row_depth", ir.Shape(("N",))
    if attentions:
        graph.inputs.extend([v for v in (spread, spread_new, kept) if v.uses()])


def _index(name: str, *shape: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))


def _flat(graph: ir.Graph, name: str, *shape: int) -> ir.Value:
    """A constant shape."""
    value = ir.Value(name=name, const_value=ir.tensor(np.array(shape, np.int64), name=name))
    graph.register_initializer(value)
    return value


def _before(graph: ir.Graph, node: ir.Node, kind: str, inputs: list[ir.Value]) -> ir.Value:
    made = ir.node(kind, inputs, {"axis": 0} if kind == "Gather" else None)
    graph.insert_before(node, [made])
    return made.outputs[0]
