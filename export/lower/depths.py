"""What of a weight is a lane's: its row, its share of what all depths give, the numbers of its rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.model.weights import Vector
from .graph import Graph


def vector(graph: Graph, name: str, at: int | None) -> tuple[ir.Value, bool]:
    """The numbers [size] of the vector ``name`` at depth ``at``, or [B, 1, size] of each lane; are they by lane?"""
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
    """rows [R, n] → [1, n] of depth ``at``, or [B, 1, n] by lane."""
    if at is not None:
        return graph.one("Slice", rows, graph.numbers(at), graph.numbers(at + 1), graph.numbers(0))
    # In this order engines fold the new axis into the table.
    table = graph.one("Unsqueeze", rows, graph.numbers(1))
    return graph.one("Gather", table, graph.depth(), axis=0)


def mask(graph: Graph, owners: tuple[int, ...]) -> ir.Value:
    """[B, 1, len(owners)]: 1 where the column's owner is the lane's depth."""

    def make() -> ir.Value:
        depth = graph.once(("depths",), lambda: graph.one("Unsqueeze", graph.depth(), graph.numbers(1, 2)))
        return graph.cast(graph.one("Equal", depth, graph.constant([[owners]], np.int64)))

    return graph.once(("mask", owners), make)


def each_row(graph: Graph, name: str, fresh: bool = False) -> ir.Value:
    """What the host gives for the tokens of each lane [B, S], for each row of a value: [B, S], packed [N, 1].

    ``fresh``: of the rows that get new K and V.
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
    """x [B, S, …] → [B, fresh, …]."""
    return graph.one("Slice", x, graph.numbers(0), graph.given("fresh"), graph.numbers(1))
