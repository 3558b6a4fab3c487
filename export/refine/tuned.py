"""What of a quantized model is trained, and how that is rounded to what is stored, at every step.

Gradients pass through roundings as if there were none (straight-through, arXiv 1308.3432). So what the model computes
with in training is what it is stored as, bit for bit, and nothing is lost at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...quant.pack import code_range, packed, storable
from ...quant.recipe import Recipe
from ...runtime.model.codec import Grouped, around_zero
from ...runtime.model.program import Program
from ...runtime.model.weights import tensors

INSIDE = 0.49
"""How far from its code, in codes, a weight is at most when training begins: so codes are those that were fitted."""


@dataclass(frozen=True)
class Rates:
    """Step sizes of Adam. ``codes``: in codes; ``scales``: in shares of the scale."""

    codes: float = 0.01
    scales: float = 0.001
    vectors: float = 0.001
    deltas: float = 0.0002


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, whose gradient is that of x."""
    return x + (rounded - x).detach()


class CodedMatrix:
    """A matrix of codes [N, K]: ``place`` [N, ⌈K/G⌉, G] is where each weight is, in codes, and ``share`` [N, ⌈K/G⌉]
    how much its scale is of the one that it had."""

    def __init__(self, weight: Tensor, codes: Grouped) -> None:
        """``weight`` [N, K]: what the codes are of."""
        self._columns = codes.columns
        self.bits = codes.bits
        found = torch.from_numpy(around_zero(codes.codes, codes.bits)).float()
        self.scales = torch.from_numpy(codes.scales.astype(np.float32)).to(weight.device)
        found = found.reshape(*self.scales.shape, -1).to(weight.device)
        padded = F.pad(weight, (0, found[0].numel() - codes.columns)).reshape(found.shape)
        self.place = found + (padded / self.scales[..., None] - found).clamp_(-INSIDE, INSIDE)
        self.share = torch.ones_like(self.scales)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return codes around zero [N, ⌈K/G⌉, G] and scales [N, ⌈K/G⌉], both as they are stored."""
        with torch.no_grad():
            codes = self.place.round().clamp_(*code_range(self.bits))
            scales = storable(self.scales * self.share)
        return through(self.place, codes), through(self.scales * self.share, scales)

    def values(self) -> Tensor:
        """Return the matrix [N, K]."""
        codes, scales = self.stored()
        return (codes * scales[..., None]).flatten(1)[:, : self._columns]

    def bound(self) -> None:
        """Keep weights within reach of the codes that there are: others would never come back."""
        low, high = code_range(self.bits)
        with torch.no_grad():
            self.place.clamp_(low - INSIDE, high + INSIDE)


class Tuned:
    """The model that is trained."""

    def __init__(
        self,
        program: Program,
        recipe: Recipe,
        floats: Mapping[str, Tensor],
        codes: Mapping[str, Grouped],
    ) -> None:
        """``floats``: every stored tensor as float32; ``codes``: of those matrices that ``recipe`` stores so."""
        self.matrices, self.vectors, self.deltas = dict[str, CodedMatrix](), dict[str, Tensor](), dict[str, Tensor]()
        self._fixed: dict[str, Tensor] = {}
        for full, tensor in tensors(program.weights):
            name, value = full.removesuffix(".weight"), floats[full]
            storage = recipe.storage(tensor.parts[0], tensor.kind)
            if name in codes:
                self.matrices[full] = CodedMatrix(value, codes[name])
            elif tensor.kind == "vector" or full.endswith(".lora_scale"):
                self.vectors[full] = value.clone()
            elif tensor.kind == "delta" and storage.is_float:
                self.deltas[full] = value.clone()
            else:
                self._fixed[full] = value.half().float() if storage.bits == 16 else value
        self._half = recipe.deltas.bits == 16

    def values(self) -> dict[str, Tensor]:
        """Return every tensor of the model as it is stored, float32, by its name."""
        found = {**self._fixed, **self.vectors}
        found |= {name: matrix.values() for name, matrix in self.matrices.items()}
        for name, delta in self.deltas.items():
            found[name] = through(delta, delta.detach().half().float()) if self._half else delta
        return found

    def groups(self, rates: Rates) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield step sizes and what they are of."""
        yield rates.codes, [matrix.place for matrix in self.matrices.values()]
        yield rates.scales, [matrix.share for matrix in self.matrices.values()]
        yield rates.vectors, list(self.vectors.values())
        yield rates.deltas, list(self.deltas.values())
