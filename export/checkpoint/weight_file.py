"""The contract of one file of weights, whatever its format."""

from __future__ import annotations

from typing import Protocol

import torch

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFile(Protocol):
    """One file of weights; tensors are in their stored dtype and may be views of the mapped file."""

    names: frozenset[str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def dtype(self, name: str) -> str:
        """Return the stored dtype of a tensor, as safetensors names it."""

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor in its stored dtype."""

    def first_row(self, name: str) -> torch.Tensor:
        """Return the first row of a tensor, or a scalar, in its stored dtype."""

    def storage(self, name: str) -> object:
        """Return what is equal for tensors that share their bytes."""
