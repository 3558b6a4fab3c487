"""Matrices, norms and arithmetic of rows, in operators that XNNPACK takes into one delegate.

A module for each op that has constants, a function for each other. Values are [M, size], or [M, heads, d] where the
next op wants heads anyway: XNNPACK copies a tensor to read it in another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.model import ops
from .xnnpack_call import Call
from .xnnpack_weights import WeightModules, rescaled

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class LoweringScope:
    """What lowering an op needs: the weights, and the sizes of the values of its stage."""

    held: WeightModules
    sizes: Mapping[str, int]


class Plain(nn.Module):
    """An op without constants: ``function`` of the op and the values that it reads."""

    def __init__(self, op: ops.Op, function: Callable[..., Result]) -> None:
        super().__init__()
        self.op, self.function = op, function

    def forward(self, call: Call, *x: Tensor) -> Result:
        """Return the values that the op writes."""
        return self.function(self.op, *x)


def plain(function: Callable[..., Result]) -> Callable[[ops.Op, LoweringScope], Plain]:
    """Return the lowering of an op without constants."""
    return lambda op, scope: Plain(op, function)


class Norm(nn.Module):
    """RMSNorm or LayerNorm. Means are matrix products: XNNPACK takes no mean over the last of two axes."""

    def __init__(self, op: ops.Norm, scope: LoweringScope) -> None:
        super().__init__()
        size = scope.sizes[op.x] // op.groups
        self.groups, self.centred = op.groups, op.kind == "layer"
        self.register_buffer("mean", torch.full((1, size), 1 / size))
        self.register_buffer("eps", torch.full((1,), op.eps))
        held = scope.held
        self.weight = None if op.weight is None else held.numbers(op.weight, op.at)
        self.bias = None if op.bias is None else held.numbers(op.bias, op.at)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Return x [M, D] normed."""
        y = rows(x) if self.groups == 1 else by_heads(x, self.groups)
        if self.centred:
            y = y - F.linear(y, self.get_buffer("mean"))
        y = y * torch.rsqrt(F.linear(y * y, self.get_buffer("mean"), self.get_buffer("eps")))
        if self.weight is not None:
            y = y * self._each(self.weight(call))
        return y if self.bias is None else y + self._each(self.bias(call))

    def _each(self, numbers: Tensor) -> Tensor:
        """Return ``numbers`` repeated for every group."""
        return numbers.unsqueeze(1) if self.groups > 1 and numbers.ndim == 2 else numbers


class Linear(nn.Module):
    """x through a matrix, or some of its parts, with biases and deltas."""

    def __init__(self, op: ops.Linear, scope: LoweringScope) -> None:
        super().__init__()
        matrix = scope.held.program.matrix(op.weight)
        sizes, last = list(matrix.parts.values()), op.first + len(op.y)
        self.matrices, self.deltas, self.scales = nn.ModuleList(), nn.ModuleDict(), nn.ModuleDict()
        self.columns: list[list[tuple[int, int] | None]] = []
        """Of each matrix, its columns of each part that is wanted; None: all of them."""
        for start, stop, piece in scope.held.pieces(op.weight):
            wanted = [i for i in range(start, stop) if op.first <= i < last]
            if wanted:
                self.matrices.append(piece)
                before = [sum(sizes[start:i]) for i in wanted]
                spans = [(at, at + sizes[i]) for at, i in zip(before, wanted, strict=True)]
                self.columns.append([None] if stop == start + 1 else [*spans])
        names = list(matrix.parts)[op.first : last]
        for i, part in enumerate(names):
            if part in matrix.deltas:
                self.deltas[str(i)], scale = scope.held.delta(op.weight, part, op.at)
                if scale is not None:
                    self.scales[str(i)] = scale
        self.biases: list[str] = []
        if matrix.bias and rescaled(matrix):
            bias = scope.held.weights[f"{op.weight}.bias"].float().split(sizes)[op.first : last]
            for i, numbers in enumerate(bias):
                self.register_buffer(f"bias{i}", numbers.clone())
                self.biases.append(f"bias{i}")

    def forward(self, call: Call, x: Tensor) -> Result:
        """Return the parts, [M, outᵢ] each."""
        x = rows(x)
        found = []
        for matrix, columns in zip(self.matrices, self.columns, strict=True):
            y = matrix(x)
            found += [y if span is None else y[:, span[0] : span[1]] for span in columns]
        for part, delta in self.deltas.items():
            y = found[int(part)] + delta(call, x)
            found[int(part)] = y * self.scales[part](call) if part in self.scales else y
        for i, name in enumerate(self.biases):
            found[i] = found[i] + self.get_buffer(name)
        return tuple(found) if len(found) > 1 else found[0]


class Scale(nn.Module):
    """factor · x · w + offset."""

    def __init__(self, op: ops.Scale, scope: LoweringScope) -> None:
        super().__init__()
        self.op = op
        self.weight = None if op.weight is None else scope.held.numbers(op.weight, op.at)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Return factor · x · w + offset."""
        y = rows(x)
        if self.op.factor != 1:
            y = y * self.op.factor
        if self.weight is not None:
            y = y * self.weight(call)
        return y + self.op.offset if self.op.offset else y


class Slice(nn.Module):
    """Some columns; by a matrix where XNNPACK does not slice."""

    def __init__(self, op: ops.Slice, scope: LoweringScope) -> None:
        super().__init__()
        self.op, self.free = op, scope.held.free
        if self.free:
            self.register_buffer("chosen", torch.eye(scope.sizes[op.x])[op.start : op.stop].clone())

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Return the columns."""
        x = rows(x)
        return F.linear(x, self.get_buffer("chosen")) if self.free else x[:, self.op.start : self.op.stop]


def act(op: ops.Act, x: Tensor) -> Tensor:
    """Return ``op.function`` of x, elementwise."""
    return ACTS[op.function](x)


def add(op: ops.Add, a: Tensor, b: Tensor) -> Tensor:
    """Return a + b."""
    return rows(a) + rows(b)


def mul(op: ops.Mul, a: Tensor, b: Tensor) -> Tensor:
    """Return a · b; where b is shorter, each of its numbers is for one of the equal parts of a."""
    a, b = rows(a), rows(b)
    if b.shape[1] in (1, a.shape[1]):
        return a * b
    return by_heads(a, b.shape[1]) * b.unsqueeze(2)


def softcap(op: ops.Softcap, x: Tensor) -> Tensor:
    """Return cap · tanh(x / cap)."""
    return capped(x, op.cap)


def capped(x: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(x / cap)."""
    return torch.tanh(x * (1 / cap)) * cap


def concat(op: ops.Concat, *x: Tensor) -> Tensor:
    """Return the values concatenated."""
    return side_by_side(x)


def side_by_side(values: Sequence[Tensor]) -> Tensor:
    """Return values [N, aᵢ] as one, [N, Σ aᵢ].

    XNNPACK's partitioner leaves out a concatenation of one tensor with itself: the second time it is −(−x), the same
    bits.
    """
    apart = [x.neg().neg() if any(x is other for other in values[:i]) else x for i, x in enumerate(values)]
    return torch.cat([rows(x) for x in apart], dim=1)


def rows(x: Tensor) -> Tensor:
    """Return x [M, …] as [M, size]."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[1] * x.shape[2])


def by_heads(x: Tensor, heads: int) -> Tensor:
    """Return x [M, …] as [M, heads, d]."""
    if x.ndim == 3 and x.shape[1] == heads:
        return x
    return x.reshape(-1, heads, x.shape[1:].numel() // heads)


def _relu2(x: Tensor) -> Tensor:
    positive = torch.relu(x)
    return positive * positive


def _gelu_tanh(x: Tensor) -> Tensor:
    """Return gelu by a tanh, written out: XNNPACK's own operator always computes the exact one."""
    return x * torch.sigmoid((x + x * x * x * 0.044715) * (8 / torch.pi) ** 0.5)


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), without overflowing."""
    return torch.relu(x) + torch.log(torch.exp(-torch.abs(x)) + 1.0)


ACTS: Mapping[ops.Function, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu2": _relu2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": _softplus,
    "exp": torch.exp,
    "relu": torch.relu,
}
