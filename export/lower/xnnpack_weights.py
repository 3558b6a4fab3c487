"""Weights as XNNPACK takes them: our codes bit for bit, int8 activations with a scale for each row.

XNNPACK holds an int4 matrix in groups (8da4w) with bfloat16 scales, an int8 matrix with one float32 scale a row
(8da8w). quant/pack.py rounds scales to bfloat16 before it chooses codes, so nothing is rounded again here.

M rows (tokens) of a call, R depths, D width, N outputs, K inputs, G group size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
    IntxUnpackedToInt8TensorActivationQuantization,
)

from ...runtime.model import ops
from ...runtime.model.codec import around_zero
from ...runtime.model.program import Program, Stage
from ...runtime.model.weights import Matrix as StoredMatrix
from ...runtime.model.weights import Vector, sibling
from .xnnpack_call import Call

_ROWS = IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN
Weights = Mapping[str, Tensor]


class Matrix(nn.Module):
    """x [M, K] → [M, N] through the stored matrix ``name``, or its rows ``rows``, and its biases if ``biased``."""

    bias: Tensor | None

    def __init__(
        self, weights: Weights, name: str, bits: int, rows: slice = slice(None), biased: bool = False
    ) -> None:
        super().__init__()
        if bits == 32:
            self.weight = nn.Parameter(weights[f"{name}.weight"][rows], requires_grad=False)
        else:
            codes, scales = weights[f"{name}.codes"][rows], weights[f"{name}.scales"][rows]
            self.weight = nn.Parameter(quantized(codes, scales, bits), requires_grad=False)
        self.register_buffer("bias", weights[f"{name}.bias"][rows].float().clone() if biased else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return [M, N] of x [M, K]."""
        y: Tensor = F.linear(x, self.weight, self.bias)
        return y


def bits_of(program: Program, weights: Weights, name: str) -> int:
    """Return the bits of the matrix ``name`` [N, K], 32 for floats. XNNPACK's groups fill rows: K codes, no more."""
    codes = weights.get(f"{name}.codes")
    return 32 if codes is None else 8 * codes[0].numel() // program.matrix(name).columns


def quantized(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the tensor that lowering takes for a matrix [N, K] of codes [N, K/G, G·bits/8] uint8, scales [N, K/G]."""
    signed = torch.from_numpy(around_zero(codes.numpy(), bits))
    tensor: Tensor = IntxUnpackedToInt8Tensor(
        qdata=signed.flatten(1),
        scale=scales.float(),
        zero_point=torch.zeros_like(scales, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{bits}"),  # torch's stubs have no int4
        block_size=(1, signed.shape[-1]),
        dtype=torch.float32,
        activation_quantization=_ROWS,
    )
    return tensor


@contextmanager
def float_activations(model: nn.Module) -> Iterator[None]:
    """Keep inputs of quantized matrices as floats while the block calls modules themselves."""
    weights = [m.weight for m in model.modules() if isinstance(m, Matrix)]
    quantized = [w for w in weights if isinstance(w, IntxUnpackedToInt8Tensor)]
    for weight in quantized:
        weight.activation_quantization = None
    try:
        yield
    finally:
        for weight in quantized:
            weight.activation_quantization = _ROWS


class Numbers(nn.Module):
    """A vector: [D], or of each row's depth [M, D]. ``differs``: whether it differs between depths."""

    def __init__(self, weights: Weights, name: str, at: int | None) -> None:
        super().__init__()
        stored = weights[f"{name}.weight"].float()
        self.differs, self.looked_up = stored.ndim == 2, stored.ndim == 2 and at is None
        # [R, D] → [D, R], a matrix whose product with one-hot depths picks rows: a gather is not delegated. Cloned: a
        # buffer that is a view of a larger one is lowered as the larger one's first values.
        kept = stored.t().contiguous() if self.looked_up else stored[at].clone() if self.differs else stored
        self.register_buffer("numbers", kept)

    def forward(self, call: Call) -> Tensor:
        """Return the vector [D], or [M, D] by the rows' depths."""
        numbers = self.get_buffer("numbers")
        return F.linear(call.one_hot, numbers) if self.looked_up else numbers


class Delta(nn.Module):
    """One projection's LoRA: x [M, in] → [M, out], at one depth or for each row that of its own.

    All depths' A are one matrix then, and the columns of other depths are masked: rows of any depth ride in one
    call.
    """

    def __init__(self, weights: Weights, name: str, at: int | None) -> None:
        super().__init__()
        a, b = weights[f"{name}.lora_a"].float(), weights[f"{name}.lora_b"].float()
        self.rank, self.by_row = a.shape[1], at is None
        self.register_buffer("a", a.flatten(0, 1) if at is None else a[at].clone())  # [R·r, in]
        stacked = b.permute(1, 0, 2).flatten(1).contiguous()  # [out, R·r]
        self.register_buffer("b", stacked if at is None else b[at].clone())

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Return the delta [M, out] of x [M, in]."""
        inner = F.linear(x, self.get_buffer("a"))
        if self.by_row:
            inner = inner * call.columns[self.rank]
        return F.linear(inner, self.get_buffer("b"))


class WeightModules:
    """The weights of a program as modules, made when an op first uses them and shared by all methods.

    ``free``: the number of rows M is not fixed, and XNNPACK slices nothing then: every part is a matrix by itself.
    ``apart``: stages that take some parts of a matrix and run for every token; it is cut so that no other is
    computed.
    """

    def __init__(
        self, program: Program, weights: Weights, free: bool = False, apart: Iterable[Stage] = ()
    ) -> None:
        self.program, self.weights, self.free = program, weights, free
        self._made: dict[tuple[object, ...], nn.Module] = {}
        self._cuts: dict[str, set[int]] = {}
        for stage in apart:
            for op in stage.ops:
                if isinstance(op, ops.Linear):
                    self._cuts.setdefault(op.weight, set()).update((op.first, op.first + len(op.y)))

    def pieces(self, name: str) -> list[tuple[int, int, Matrix]]:
        """Return the matrices that ``name`` consists of: (first part, the one behind the last, matrix) of each."""
        matrix = self.program.matrix(name)
        count = len(matrix.parts)
        cuts = range(count + 1) if self.free else sorted({0, count, *self._cuts.get(name, ())})
        return [(first, last, self._matrix(name, matrix, first, last)) for first, last in pairwise(cuts)]

    def _matrix(self, name: str, matrix: StoredMatrix, first: int, last: int) -> Matrix:
        sizes = list(matrix.parts.values())
        rows = slice(sum(sizes[:first]), sum(sizes[:last]))
        bits = bits_of(self.program, self.weights, name)
        made = self._once(
            ("matrix", name, first, last),
            lambda: Matrix(self.weights, name, bits, rows, matrix.bias and not rescaled(matrix)),
        )
        assert isinstance(made, Matrix)
        return made

    def numbers(self, name: str, at: int | None) -> Numbers:
        """Return the vector ``name`` at depth ``at``, or of the depth of each row."""
        vector = self.program.weights[name]
        at = 0 if isinstance(vector, Vector) and vector.rows == 1 else at
        made = self._once(("numbers", name, at), lambda: Numbers(self.weights, name, at))
        assert isinstance(made, Numbers)
        return made

    def delta(self, name: str, part: str, at: int | None) -> tuple[Delta, nn.Module | None]:
        """Return the delta of ``part`` of the matrix ``name``, and the factor of the sum, if any."""
        matrix, stem = self.program.matrix(name), sibling(name, part)
        at = 0 if matrix.depths == 1 else at
        added = self._once(("delta", stem, at), lambda: Delta(self.weights, stem, at))
        assert isinstance(added, Delta)
        if not matrix.deltas[part].rescaled:
            return added, None
        scales = {f"{stem}.lora_scale.weight": self.weights[f"{stem}.lora_scale"]}
        return added, self._once(("scale", stem, at), lambda: Numbers(scales, f"{stem}.lora_scale", at))

    def _once(self, key: tuple[object, ...], make: Callable[[], nn.Module]) -> nn.Module:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def rescaled(matrix: StoredMatrix) -> bool:
    """Return whether its rows are multiplied after its deltas were added."""
    return any(delta.rescaled for delta in matrix.deltas.values())
