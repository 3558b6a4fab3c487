"""Matrices as MIL: lookups of rows, and products with the deltas of a depth."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from ...runtime.model.ops import Embed, Linear
from ...runtime.model.weights import Delta, Matrix, sibling
from ..targets.coreml.constants import Var
from .mil_scope import Scope, Values

_NONE = Delta(0)


def embed(scope: Scope, values: Values, op: Embed) -> None:
    """Write the lookup of the table's rows."""
    width = scope.plan.program.matrix(op.table).columns
    x = mb.gather(x=scope.constants.matrix(op.table), indices=values.flat(op.ids), axis=0)
    if x.shape[-1] > width:  # its last group was padded
        x = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, x.shape[1], width])
    values[op.y] = x if op.scale == 1 else mb.mul(x=x, y=np.float16(op.scale))


def linear(scope: Scope, values: Values, op: Linear) -> None:
    """Write the parts of a matrix; parts that every function needs together are one product."""
    matrix = scope.plan.program.matrix(op.weight)
    x, parts = values.flat(op.x), list(matrix.parts)
    padded = scope.constants.padded(x, op.weight, matrix.columns)
    start = sum(matrix.parts[part] for part in parts[: op.first])
    start += scope.at(op.at) * matrix.rows if matrix.copies > 1 else 0
    outputs = iter(op.y)
    for first, last in scope.plan.pieces(op):
        names = parts[first:last]
        rescaled = any(matrix.deltas.get(name, _NONE).rescaled for name in names)
        made = _piece(scope, padded, op.weight, start, names, matrix.bias and not rescaled)
        for name, y in zip(names, made, strict=True):
            y = _with_delta(scope, y, x, op, matrix, name)
            rows = start, start + matrix.parts[name]
            if matrix.bias and rescaled:  # only what is before the bias is rescaled
                y = mb.add(x=y, y=scope.constants.half(f"{op.weight}.bias", rows))
            values[next(outputs)], start = y, rows[1]


def _piece(scope: Scope, x: Var, weight: str, start: int, names: list[str], biased: bool) -> list[Var]:
    """Return x [1, T, K] times the rows of the parts ``names``, which begin with row ``start`` of the matrix."""
    matrix = scope.plan.program.matrix(weight)
    sizes = [matrix.parts[name] for name in names]
    entire = sum(sizes) == matrix.rows and matrix.copies == 1
    rows = None if entire else (start, start + sum(sizes))
    bias = scope.constants.half(f"{weight}.bias", rows) if biased else None
    y = scope.constants.linear_by(x, scope.constants.matrix(weight, rows), bias)
    return split(y, sizes)


def split(x: Var, sizes: list[int]) -> list[Var]:
    """Return x [..., Σ sizes], cut along its last axis."""
    if len(sizes) == 1:
        return [x]
    cut = {"num_splits": len(sizes)} if len(set(sizes)) == 1 else {"split_sizes": sizes}
    return list(mb.split(x=x, axis=-1, **cut))


def _with_delta(scope: Scope, y: Var, x: Var, op: Linear, matrix: Matrix, part: str) -> Var:
    """Return y [1, T, out] plus the depth's delta of ``part`` of x [1, T, in]."""
    delta = matrix.deltas.get(part)
    if delta is None:
        return y
    constants, name = scope.constants, sibling(op.weight, part)
    depth = 0 if matrix.depths == 1 else scope.at(op.at)
    low = constants.linear_by(x, constants.half(f"{name}.lora_a", depth))
    y = mb.add(x=y, y=constants.linear_by(low, constants.half(f"{name}.lora_b", depth)))
    return mb.mul(x=y, y=constants.half(f"{name}.lora_scale", depth)) if delta.rescaled else y
