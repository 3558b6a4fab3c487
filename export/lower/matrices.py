"""Matrices as ONNX nodes: float, codes in groups, codes with a scale a row; tables; and deltas of depths.

ONNX Runtime multiplies codes with one scale a row in integers, so that a token's result does not depend on the other
tokens of the call, bit for bit. Its integer kernel also reads the weights once for several tokens, which MatMulNBits
does not: on two cores with AVX2 three tokens cost 1.1 to 1.3 times as much as one, against 1.6 to 1.8 (4 or 8 bits in
groups). Those codes are unsigned on purpose: where a processor has no dot-product instructions, the kernel for signed
ones adds pairs of products in 16 bits, which overflow.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from ...runtime.model.ops import Embed, Experts, Linear
from ...runtime.model.weights import Delta, Matrix, sibling
from .depths import each_row, mask, of_depth
from .elementwise import act
from .graph import Graph, StageValue
from .values import MatrixOutput, MatrixOutputs, Values

INT8_ACTIVATIONS = 4
"""An accuracy level of MatMulNBits."""
STEPS, ZERO = 127, 128
"""Activations are whole numbers of 1/127 of a token's largest, stored with an offset of 128, as codes are."""


def linear(graph: Graph, values: Values, op: Linear) -> None:
    """Write x through a matrix, or some of its parts, with bias and deltas."""
    matrix, x = graph.program.matrix(op.weight), values[op.x]
    names = list(matrix.parts)[op.first : op.first + len(op.y)]
    sizes = tuple(matrix.parts[name] for name in names)
    start, width = sum(list(matrix.parts.values())[: op.first]), sum(sizes)
    rescaled = any(matrix.deltas[name].rescaled for name in names if name in matrix.deltas)
    at = 0 if matrix.copies == 1 else op.at
    if at is not None:
        rows = (at * matrix.rows + start, at * matrix.rows + start + width)
        y = matmul(graph, x.value, op.weight, rows, matrix.bias and not rescaled)
    else:
        every = matmul(
            graph, x.value, op.weight, (0, matrix.copies * matrix.rows), matrix.bias and not rescaled
        )
        y = _columns(graph, _of_lanes(graph, every, matrix.copies), matrix, start, width)
    if any(name in matrix.deltas for name in names):
        y = _with_deltas(graph, x.value, y, op, matrix, names)
        if matrix.bias and rescaled:  # which it is not itself
            y = graph.one("Add", y, _columns(graph, _bias(graph, op.weight, at), matrix, start, width))
    joined = StageValue(y, width, x.fresh)
    if len(op.y) == 1:
        values[op.y[0]] = joined
        return
    outputs = MatrixOutputs(joined, op.y, sizes)
    for name in op.y:
        values[name] = MatrixOutput(outputs, name)


def matmul(graph: Graph, x: ir.Value, name: str, rows: tuple[int, int], bias: bool = False) -> ir.Value:
    """Return x [..., K] through rows of the stored matrix ``name``: [..., n].

    Scales are cast to float32 by an operator, which engines fold when they load the graph. They have to: with graph
    optimization switched off, onnxruntime 1.32 packs before it casts and computes nonsense.
    """
    offset = graph.weight(f"{name}.bias", rows, as_float=True) if bias else None
    if graph.has(f"{name}.weight"):
        weight = graph.weight(f"{name}.weight", rows, as_float=True)
        y = graph.one("MatMul", x, _transposed(graph, weight))
    elif group := graph.stored.group_size(name):
        codes = graph.weight(f"{name}.codes", rows)
        scales = graph.weight(f"{name}.scales", rows, as_float=True)
        biased = [None, None, offset] if offset else []
        return graph.fused(
            "MatMulNBits", x, codes, scales, *biased, K=graph.program.matrix(name).columns, N=rows[1] - rows[0],
            bits=_bits(graph, name), block_size=group, accuracy_level=INT8_ACTIVATIONS,
        )  # fmt: skip
    else:
        y = _by_rows(graph, x, name, rows)
    return graph.one("Add", y, offset) if offset else y


def embed(graph: Graph, values: Values, op: Embed) -> None:
    """Write the lookup of rows of a table.

    Its codes are read as [V, bytes], the shape that the operator takes: reshaping a matrix's codes would make
    engines hold a second copy of the largest tensor.
    """
    ids = graph.given("ids") if op.ids == "ids" else each_row(graph, op.ids)
    columns = graph.program.matrix(op.table).columns
    name, group = op.table, graph.stored.group_size(op.table)
    if graph.has(f"{name}.weight"):
        y = graph.one("Gather", graph.weight(f"{name}.weight", as_float=True), ids, axis=0)
    else:
        shape = graph.stored.tensor_spans[f"{name}.codes"].shape
        codes = graph.weight(f"{name}.codes", shape=(shape[0], prod(shape[1:])))
        if group:
            scales = graph.weight(f"{name}.scales", as_float=True)
            y = graph.fused(
                "GatherBlockQuantized", codes, ids, scales, bits=_bits(graph, name), block_size=group,
                gather_axis=0, quantize_axis=1,
            )  # fmt: skip
            if columns < shape[1] * group:
                y = graph.one("Slice", y, graph.numbers(0), graph.numbers(columns), graph.numbers(-1))
        else:
            row = graph.one("Gather", codes, ids, axis=0)
            scale = graph.one("Gather", graph.weight(f"{name}.scales"), ids, axis=0)
            centred = graph.one("Sub", graph.cast(row), graph.number(ZERO))
            y = graph.one("Mul", centred, graph.cast(scale))
    if op.scale != 1:
        y = graph.one("Mul", y, graph.number(op.scale))
    values[op.y] = StageValue(y, columns)


def experts(graph: Graph, values: Values, op: Experts) -> None:
    """Write all experts, each weighed by its share: 0 for those that were not chosen."""
    x, scores = values[op.x], values[op.scores]
    up, down = graph.program.matrix(op.up), graph.program.matrix(op.down)
    shares = _shares(graph, scores, op)
    inner = matmul(graph, x.value, op.up, (0, scores.size * up.rows), up.bias)
    inner = graph.reshaped(inner, scores.size, up.rows)
    if op.gated:
        first, second = graph.node("Split", inner, outputs=2, axis=-1, num_outputs=2)
        inner = graph.one("Mul", act(graph, first, op.function), second)
    else:
        inner = act(graph, inner, op.function)
    size, found = down.columns, None
    each = graph.node("Split", graph.reshaped(inner, scores.size * size), outputs=scores.size, axis=-1,
                      num_outputs=scores.size)  # fmt: skip
    weighs = graph.node("Split", shares, outputs=scores.size, axis=-1, num_outputs=scores.size)
    for e, (hidden, share) in enumerate(zip(each, weighs, strict=True)):
        y = matmul(graph, hidden, op.down, (e * down.rows, (e + 1) * down.rows), down.bias)
        y = graph.one("Mul", y, share)
        found = y if found is None else graph.one("Add", found, y)
    assert found is not None
    values[op.y] = StageValue(found, down.rows, x.fresh)


def _shares(graph: Graph, scores: StageValue, op: Experts) -> ir.Value:
    """Return the weight of each expert, [..., X]."""
    p = graph.one("Softmax", scores.value, axis=-1)
    _, chosen = graph.node("TopK", p, graph.numbers(op.top), outputs=2, axis=-1)
    count, on = graph.constant(scores.size, np.int64), graph.constant((0, 1), np.float32)
    picked = graph.one("OneHot", chosen, count, on, axis=-1)
    p = graph.one("Mul", p, graph.one("ReduceSum", picked, graph.numbers(-2), keepdims=0))
    if not op.renormalised:
        return p
    return graph.one("Div", p, graph.one("ReduceSum", p, graph.numbers(-1), keepdims=1))


def _bits(graph: Graph, name: str) -> int:
    return 8 * graph.stored.tensor_spans[f"{name}.codes"].shape[2] // graph.stored.group_size(name)


def _transposed(graph: Graph, weight: ir.Value) -> ir.Value:
    return graph.once(("transposed", id(weight)), lambda: graph.one("Transpose", weight, perm=(1, 0)))


def _by_rows(graph: Graph, x: ir.Value, name: str, rows: tuple[int, int]) -> ir.Value:
    """Return x [..., K] through codes with a scale a row: [..., n]; x is quantized token by token."""
    codes = graph.weight(f"{name}.codes", rows, (rows[1] - rows[0], graph.program.matrix(name).columns))
    scales = graph.weight(f"{name}.scales", rows, (rows[1] - rows[0],), as_float=True)
    step, zero = graph.number(1 / STEPS), graph.constant(ZERO, np.uint8)
    # 0 for padding: then x / peak is anything, and times peak 0 again
    peak = graph.once(
        ("peak", id(x)), lambda: graph.one("ReduceMax", graph.one("Abs", x), graph.numbers(-1), keepdims=1)
    )
    whole = graph.once(
        ("whole", id(x)), lambda: graph.one("QuantizeLinear", graph.one("Div", x, peak), step, zero)
    )
    y = graph.fused("MatMulIntegerToFloat", whole, _transposed(graph, codes), step, scales, zero, zero)
    return graph.one("Mul", y, peak)


def _of_lanes(graph: Graph, every: ir.Value, copies: int) -> ir.Value:
    """Return each lane's part of the outputs of all depths' matrices: the weights stay as they are stored."""
    masks = mask(graph, tuple(range(copies)))
    parts = graph.node("Split", every, outputs=copies, axis=-1, num_outputs=copies)
    owns = graph.node("Split", masks, outputs=copies, axis=-1, num_outputs=copies)
    first, *rest = (graph.one("Mul", part, own) for part, own in zip(parts, owns, strict=True))
    for other in rest:
        first = graph.one("Add", first, other)
    return first


def _bias(graph: Graph, name: str, at: int | None) -> ir.Value:
    """Return the bias of the matrix at depth ``at``, or of each lane's."""
    matrix = graph.program.matrix(name)
    rows = graph.weight(f"{name}.bias", shape=(matrix.copies, matrix.rows), as_float=True)
    return of_depth(graph, rows, at)


def _columns(graph: Graph, x: ir.Value, matrix: Matrix, start: int, width: int) -> ir.Value:
    """Return the outputs of some parts of a matrix, of those of all parts."""
    if width == matrix.rows:
        return x
    bounds = graph.numbers(start), graph.numbers(start + width), graph.numbers(-1)
    return graph.one("Slice", x, *bounds)


def _with_deltas(
    graph: Graph, x: ir.Value, y: ir.Value, op: Linear, matrix: Matrix, names: list[str]
) -> ir.Value:
    """Return y + B_all · (mask ⊙ A_all · x), rescaled where the deltas are.

    All depths' A are stacked into one matrix of rank Σ R·r and the columns of other depths are masked, so lanes of
    different depth ride in one call without copying weights. B_all is block-diagonal over the parts; it is put
    together by constant operators, which engines fold when they load the graph.
    """
    at = 0 if matrix.depths == 1 else op.at
    a_rows, b_blocks, owners = list[ir.Value](), list[ir.Value](), list[int]()
    width, start = sum(matrix.parts[name] for name in names), 0
    for name in names:
        size, delta = matrix.parts[name], matrix.deltas.get(name)
        if delta is not None:
            stem, depths = sibling(op.weight, name), matrix.depths if at is None else 1
            rows = None if at is None else (at, at + 1)
            a, b = (graph.weight(f"{stem}.lora_{s}", rows, as_float=True) for s in "ab")
            rank = depths * delta.rank
            a_rows.append(graph.one("Reshape", a, graph.numbers(rank, matrix.columns)))
            columns = graph.one("Transpose", b, perm=(0, 2, 1))
            columns = graph.one("Reshape", columns, graph.numbers(rank, size))
            if size < width:
                columns = graph.one("Pad", columns, graph.numbers(0, start, 0, width - start - size))
            b_blocks.append(columns)
            owners += [r for r in range(depths) for _ in range(delta.rank)]
        start += size
    low = graph.one("MatMul", x, graph.one("Transpose", _stacked(graph, a_rows), perm=(1, 0)))
    if at is None:
        low = graph.one("Mul", low, mask(graph, tuple(owners)))
    y = graph.one("Add", y, graph.one("MatMul", low, _stacked(graph, b_blocks)))
    if not any(matrix.deltas[name].rescaled for name in names if name in matrix.deltas):
        return y
    return graph.one("Mul", y, _row_scales(graph, op, matrix, names, at))


def _row_scales(graph: Graph, op: Linear, matrix: Matrix, names: list[str], at: int | None) -> ir.Value:
    """Return the factor of each output: [1, width] at a depth, [B, 1, width] by lane."""
    none, parts = Delta(0), list[ir.Value]()
    for name in names:
        if matrix.deltas.get(name, none).rescaled:
            scale = graph.weight(f"{sibling(op.weight, name)}.lora_scale", as_float=True)
        else:
            one = ir.tensor(np.ones(1, np.float32))
            scale = graph.one("ConstantOfShape", graph.numbers(matrix.depths, matrix.parts[name]), value=one)
        parts.append(scale)
    return of_depth(graph, _stacked(graph, parts, axis=1), at)


def _stacked(graph: Graph, parts: list[ir.Value], axis: int = 0) -> ir.Value:
    return graph.one("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
