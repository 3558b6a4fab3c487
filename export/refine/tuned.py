"""What of a quantized model is trained, and how that is rounded to what is stored, at every step.

Gradients pass through roundings as if there were none (straight-through, arXiv 1308.3432). So what the model computes
with in training is what it is stored as, bit for bit, and nothing is lost at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...quant.pack import code_range, packed, storable
from ...quant.recipe import Recipe
from ...runtime.model.codec import F32, Grouped, Palette, around_zero
from ...runtime.model.program import Program
from ...runtime.model.weights import tensors
from ..stored import Coded

INSIDE = 0.49
"""How far from its code, in codes, a weight is at most when training begins: so codes are those that were fitted."""


@dataclass(frozen=True)
class Rates:
    """Step sizes of Adam. ``codes``: in codes; ``scales``: in shares of the scale."""

    codes: float = 0.001
    scales: float = 0.003
    vectors: float = 0.003
    deltas: float = 0.001


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, whose gradient is that of x."""
    return x + (rounded - x).detach()


class CodedMatrix:
    """A matrix of codes [N, K]: ``place`` [N, ⌈K/G⌉, G] is where each weight is, in codes, and ``share`` [N, ⌈K/G⌉]
    how much its scale is of the one that it had."""

    def __init__(self, weight: Tensor, codes: Grouped, group_size: int) -> None:
        """``weight`` [N, K]: what ``codes`` are of."""
        self._bits, self._columns, self._group_size = codes.bits, codes.columns, group_size
        self._scales = torch.from_numpy(codes.scales.astype(np.float32)).to(weight.device)
        found = torch.from_numpy(around_zero(codes.codes, codes.bits)).to(weight.device).float()
        meant = F.pad(weight, (0, found[0].numel() - codes.columns)).reshape(found.shape)
        meant /= self._scales[..., None]
        self.place = found + (meant - found).clamp_(-INSIDE, INSIDE)
        self.share = torch.ones_like(self._scales)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return codes around zero [N, ⌈K/G⌉, G] and scales [N, ⌈K/G⌉], both as they are stored."""
        scales = self._scales * self.share
        with torch.no_grad():
            codes, kept = self.place.round().clamp_(*code_range(self._bits)), storable(scales)
        return through(self.place, codes), through(scales, kept)

    def values(self) -> Tensor:
        """Return the matrix [N, K]."""
        codes, scales = self.stored()
        return (codes * scales[..., None]).flatten(1)[:, : self._columns]

    def bound(self) -> None:
        """Keep weights within reach of the codes that there are: others would never come back."""
        low, high = code_range(self._bits)
        with torch.no_grad():
            self.place.clamp_(low - INSIDE, high + INSIDE)

    def grouped(self) -> Grouped:
        """Return codes and scales."""
        with torch.no_grad():
            codes, scales = (each.cpu() for each in self.stored())
        return packed(codes.flatten(1)[:, : self._columns], scales, self._bits, self._group_size)


class Tuned:
    """The model that is trained: codes, scales, norms, biases and deltas. Matrices of floats and of tables stay."""

    def __init__(
        self, program: Program, recipe: Recipe, floats: Mapping[str, Tensor], codes: Mapping[str, Coded]
    ) -> None:
        """``floats``: every stored tensor as float32; ``codes``: of those matrices that ``recipe`` stores so."""
        sizes = recipe.group_sizes(program.weights)
        self._matrices: dict[str, CodedMatrix] = {}
        self._vectors: dict[str, Tensor] = {}
        self._deltas: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        self._half = recipe.deltas.bits == 16
        for full, tensor in tensors(program.weights):
            name, value = full.removesuffix(".weight"), floats[full]
            storage = recipe.storage(tensor.parts[0], tensor.kind)
            if isinstance(found := codes.get(name), Palette):
                self._fixed[full] = torch.from_numpy(found.values()).to(value.device)
            elif found is not None:
                self._matrices[full] = CodedMatrix(value, found, sizes[name])
            elif tensor.kind == "vector" or full.endswith(".lora_scale"):
                self._vectors[full] = value.clone()
            elif tensor.kind == "delta" and storage.is_float:
                self._deltas[full] = value.half().float() if self._half else value.clone()
            else:
                self._fixed[full] = value.half().float() if storage.bits == 16 else value

    def values(self) -> dict[str, Tensor]:
        """Return every tensor of the model as it is stored, float32, by its name."""
        found = {**self._fixed, **self._vectors}
        found |= {name: matrix.values() for name, matrix in self._matrices.items()}
        for name, delta in self._deltas.items():
            found[name] = through(delta, delta.detach().half().float()) if self._half else delta
        return found

    def groups(self, rates: Rates) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield step sizes and what they are of."""
        yield rates.codes, [matrix.place for matrix in self._matrices.values()]
        yield rates.scales, [matrix.share for matrix in self._matrices.values()]
        yield rates.vectors, list(self._vectors.values())
        yield rates.deltas, list(self._deltas.values())

    def bound(self) -> None:
        """Keep weights within reach of their codes."""
        for matrix in self._matrices.values():
            matrix.bound()

    def coded(self) -> dict[str, Grouped]:
        """Return the codes of the matrices by name."""
        return {name.removesuffix(".weight"): matrix.grouped() for name, matrix in self._matrices.items()}

    def floats(self) -> dict[str, F32]:
        """Return what else was trained by the stored tensor's name, float32: of deltas, numbers of their format."""
        values = self.values()
        return {name: values[name].detach().cpu().numpy() for name in (*self._vectors, *self._deltas)}
