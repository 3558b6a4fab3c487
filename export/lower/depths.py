"""The parts of a weight that belong to a lane's depth, and host values for each row, as ONNX nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.model.weights import Vector
from .graph import Graph


def vector(graph: Graph, name: str, at: int | None) -> tuple[ir.Value, bool]:
    """Return the vector ``name`` [size] at depth ``at``, or [B, 1, size] of each lane, and whether it is by lane."""
    found = graph.program.weights[name]
    assert isinstance(found, Vector)
    stored = f"{name}.weight"
    if found.rows is None:
        return graph.weight(stored, as_float=True), False
    at = 0 if found.rows == 1 else at
    if at is not None:
        return graph.weight(stored, (at, at + 1), (found.size,), as_float=True), False
    return of_depth(graph, graph.weight(stored, as_float=True), None), True


def of_depth(graph: Graph, rows: ir.Value, at: int | None) -> ir.Value:
    """Return row ``at`` of rows [R, n] as [1, n], or each lane's as [B, 1, n]."""
    if at is not None:
        return graph.one("Slice", rows, graph.numbers(at), graph.numbers(at + 1), graph.numbers(0))
    # In this order engines fold the new axis into the table.
    table = graph.one("Unsqueeze", rows, graph.numbers(1))
    return graph.one("Gather", table, graph.depth(), axis=0)


def mask(graph: Graph, owners: tuple[int, ...]) -> ir.Value:
    """Return [B, 1, len(owners)]: 1 where the column's owner is the lane's depth."""

    def make() -> ir.Value:
        depth = graph.once(("depths",), lambda: graph.one("Unsqueeze", graph.depth(), graph.numbers(1, 2)))
        return graph.cast(graph.one("Equal", depth, graph.constant([[owners]], np.int64)))

    return graph.once(("mask", owners), make)


def each_row(graph: Graph, name: str, fresh: bool = False) -> ir.Value:
    """Return the host's values for the tokens of each lane [B, S] for each row of a value: [B, S], packed [N, 1].

    ``fresh``: only for the rows that get new K/V.
    """

    def make() -> ir.Value:
        value = graph.given(name)
        if graph.packed:
            flat = graph.one("Reshape", value, graph.numbers(-1))
            kept = graph.one("Gather", flat, graph.given("kept"), axis=0)
            value = graph.one("Unsqueeze", kept, graph.numbers(1))
        return fresh_rows(graph, value) if fresh else value

    return graph.once(("each row", name, fresh), make)


def fresh_rows(graph: Graph, x: ir.Value) -> ir.Value:
    """Return the rows of x [B, S, …] that get new K/V, [B, fresh, …]."""
    return graph.one("Slice", x, graph.numbers(0), graph.given("fresh"), graph.numbers(1))
