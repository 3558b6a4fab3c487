"""Norms, activations and arithmetic of rows, as MIL."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from ...runtime.model.ops import Act, Add, Concat, Function, Mul, Norm, Scale, Slice, Softcap
from ..targets.coreml.constants import Var
from .mil_scope import Scope, Values

SMALLEST = np.float16(2.0**-4)
"""Norms divide by a row's largest value, at least by this: see ``norm``."""
_EPS = 2.0**-16
"""The least √eps whose square, over ``SMALLEST``², is not 0 in float16: a row of zeros is not divided by it."""


def norm(scope: Scope, values: Values, op: Norm) -> None:
    """Write RMSNorm or LayerNorm of each group of a row.

    Squares of float16 overflow from 256 on and vanish below 2e-4, and a sum of numbers may overflow too, so each
    row is first divided by its largest value m; then eps is divided by m². Where m is below 1/16, eps is most of
    the sum anyway.
    """
    x = values.heads(op.x, op.groups) if op.groups > 1 else values.flat(op.x)
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=SMALLEST)
    inverse = mb.inverse(x=largest, epsilon=np.float16(0))
    scaled = mb.mul(x=x, y=inverse)
    if op.kind == "layer":
        scaled = mb.sub(x=scaled, y=mb.reduce_mean(x=scaled, axes=[-1], keep_dims=True))
    mean = mb.reduce_mean(x=mb.square(x=scaled), axes=[-1], keep_dims=True)
    eps = mb.square(x=mb.mul(x=inverse, y=np.float16(max(op.eps**0.5, _EPS))))
    y = mb.mul(x=scaled, y=mb.rsqrt(x=mb.add(x=mean, y=eps), epsilon=np.float16(0)))
    if op.weight is not None:
        y = mb.mul(x=y, y=scope.vector(op.weight, op.at))
    values[op.y] = y if op.bias is None else mb.add(x=y, y=scope.vector(op.bias, op.at))


def act(scope: Scope, values: Values, op: Act) -> None:
    """Write an activation."""
    values[op.y] = ACTS[op.function](values[op.x])


def add(scope: Scope, values: Values, op: Add) -> None:
    """Write a + b."""
    values[op.y] = mb.add(x=values.flat(op.a), y=values.flat(op.b))


def mul(scope: Scope, values: Values, op: Mul) -> None:
    """Write a · b; where b is shorter, each of its numbers is for one of the equal parts of a."""
    parts, width = values.size(op.b), values.size(op.a)
    if parts in (1, width):
        values[op.y] = mb.mul(x=values.flat(op.a), y=values.flat(op.b))
    else:
        values[op.y] = mb.mul(x=values.heads(op.a, parts), y=values.heads(op.b, parts))


def scale(scope: Scope, values: Values, op: Scale) -> None:
    """Write factor · x · w + offset."""
    y = values.flat(op.x)
    if op.factor != 1 or (op.weight is None and not op.offset):
        y = mb.mul(x=y, y=np.float16(op.factor))
    if op.weight is not None:
        y = mb.mul(x=y, y=scope.vector(op.weight, op.at))
    values[op.y] = mb.add(x=y, y=np.float16(op.offset)) if op.offset else y


def softcap(scope: Scope, values: Values, op: Softcap) -> None:
    """Write cap · tanh(x / cap)."""
    values[op.y] = capped(values[op.x], op.cap)


def capped(x: Var, cap: float) -> Var:
    """Return cap · tanh(x / cap)."""
    return mb.mul(x=mb.tanh(x=mb.real_div(x=x, y=np.float16(cap))), y=np.float16(cap))


def concat(scope: Scope, values: Values, op: Concat) -> None:
    """Write the concatenation of values."""
    values[op.y] = mb.concat(values=[values.flat(name) for name in op.x], axis=-1)


def cut(scope: Scope, values: Values, op: Slice) -> None:
    """Write some columns of a value."""
    x = values.flat(op.x)
    values[op.y] = mb.slice_by_index(x=x, begin=[0, 0, op.start], end=[1, scope.count, op.stop])


ACTS: Mapping[Function, Callable[[Var], Var]] = {
    "silu": lambda x: mb.silu(x=x),
    "gelu": lambda x: mb.gelu(x=x, mode="EXACT"),
    "gelu_tanh": lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "relu2": lambda x: mb.square(x=mb.relu(x=x)),
    "sigmoid": lambda x: mb.sigmoid(x=x),
    "tanh": lambda x: mb.tanh(x=x),
    "softplus": lambda x: mb.softplus(x=x),
    "exp": lambda x: mb.exp(x=x),
    "relu": lambda x: mb.relu(x=x),
}
