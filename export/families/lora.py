"""LoRA on the matrices of a checkpoint, W + s · B A (arXiv 2106.09685): A [rank, in], B [out, rank]; and DoRA, which
gives each row of that a length that was learned (arXiv 2402.09353).

A matrix that is stored once gets it added. Where a layer is written out depth by depth, each depth keeps a delta of its
own. Of a fused matrix, which has one A and one B, each part gets A and its own rows of B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Loader

Scale = Callable[[str, int], float]
"""(module name without PEFT's prefix, rank) → s."""
Rows = Callable[[torch.Tensor], torch.Tensor]
"""Some rows of a tensor."""


@dataclass(frozen=True)
class Lora:
    """The LoRA of a matrix: loaders of A [rank, in] and B [out, rank], and s; with DoRA also of the rows' lengths
    [out], and what an error calls them."""

    a: Loader
    b: Loader
    rank: int
    scale: float
    lengths: Loader | None = None
    name: str = ""

    def added(self, load: Loader, rows: Rows) -> torch.Tensor:
        """Return some ``rows`` of the matrix, of which ``load`` gives those without the LoRA."""
        whole = self.summed(load, rows)
        return whole if self.lengths is None else whole * self.row_scale(whole, rows)[:, None]

    def summed(self, load: Loader, rows: Rows) -> torch.Tensor:
        """Return W + s · B A, of some ``rows``; CheckpointError where that is beyond float32."""
        found = load() + self.scale * (rows(self.b()) @ self.a())
        if not found.isfinite().all():
            raise CheckpointError(
                f"{self.name} makes values that are infinite or NaN, with a scale of {self.scale:g}; wanted lora_alpha "
                "and weights as they were trained"
            )
        return found

    def row_scale(self, summed: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return [out]: the length of each row over the one that it has in ``summed``; 1 without lengths."""
        if self.lengths is None:
            return torch.ones(len(summed))
        own = torch.linalg.vector_norm(summed, dim=1)
        if not own.all():
            raise CheckpointError(
                f"{self.name} are lengths of rows of which one is zero; export a checkpoint from before training "
                "diverged"
            )
        scale: torch.Tensor = rows(self.lengths()) / own
        return scale


class Loras:
    """The LoRAs of a checkpoint, by the names of the matrices that they change."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, scale: Scale | None, used: set[str]) -> None:
        """``prefix``: what names have before those of the model's modules. ``used`` gets the names that are read."""
        self._checkpoint, self._prefix, self._scale, self._used = checkpoint, prefix, scale, used

    def rank(self, matrix: str) -> int:
        """Return the rank of the LoRA of ``matrix``, 0 without one; CheckpointError for one that cannot be."""
        if (names := self._names(matrix)) is None:
            return 0
        found: int = (*self._checkpoint.shape(names[0]), 0)[0]
        largest = max(self._checkpoint.shape(matrix))
        if not 0 < found <= largest:
            raise CheckpointError(
                f"{self._checkpoint.adapter_folder}: {names[0]} has rank {found}; wanted 1 … {largest}"
            )
        return found

    def of(self, matrix: str, shape: tuple[int, ...]) -> Lora | None:
        """Return the LoRA of ``matrix`` of ``shape`` [out, in], whose tensors are then used; None without one."""
        if len(shape) != 2 or (names := self._names(matrix)) is None:
            return None
        rank = self.rank(matrix)
        if self._scale is None:
            raise CheckpointError(
                f"{self._checkpoint.folder}: {names[0]} is a LoRA without a scale: wanted conf.yaml or "
                "adapter_config.json beside the weights"
            )
        for name, size in zip(names, ((rank, shape[1]), (shape[0], rank), (shape[0],)), strict=False):
            self._checkpoint.require(name, size)
        self._used.update(names)
        load = [partial(self._checkpoint.tensor, name) for name in names]
        lengths = load[2] if len(load) > 2 else None
        scale = self._scale(_module(matrix).removeprefix(self._prefix), rank)
        return Lora(load[0], load[1], rank, scale, lengths, f"{self._checkpoint.folder}: {names[-1]}")

    def differ(self, group: Sequence[str]) -> bool:
        """Return whether the matrices of ``group``, one a depth, may have LoRAs that differ."""
        return len(set(group)) > 1 and any(self._names(matrix) for matrix in group)

    def rescales(self, matrix: str) -> bool:
        """Return whether the LoRA of ``matrix`` is a DoRA."""
        return len(self._names(matrix) or ()) > 2

    def _names(self, matrix: str) -> tuple[str, ...] | None:
        """Return the names of A and B of ``matrix``, and of the rows' lengths where it has them; or None."""
        stem, names = _module(matrix), self._checkpoint.names
        pair = tuple(f"{stem}.lora_{x}.default.weight" for x in "AB")
        if not matrix.endswith(".weight") or names.isdisjoint(pair):
            return None
        if missing := next((name for name in pair if name not in names), None):
            (there,) = names.intersection(pair)
            raise CheckpointError(
                f"{self._checkpoint.adapter_folder} has {there} and no {missing}: half of a LoRA; copy or save it again"
            )
        # PEFT before 0.12 kept the lengths in a ParameterDict, whose entries have no .weight.
        stored = (f"{stem}.lora_magnitude_vector.default{end}" for end in (".weight", ""))
        return (*pair, *(name for name in stored if name in names))


def by_depth(
    loras: Sequence[Lora | None], weights: Sequence[Loader], rows: Rows, shape: tuple[int, int], rank: int
) -> dict[str, Loader]:
    """Return the loaders of ``lora_a`` [R, rank, in], ``lora_b`` [R, out, rank], with s in it, and ``lora_scale`` [R,
    out] of R depths, for a part [out, in] of a matrix: its ``rows``.

    Zeros are depths without one, and fill up those of lower rank (PEFT's rank_pattern). ``weights``: loaders of the
    part at each depth, without the LoRA.
    """
    d_out, d_in = shape

    def first() -> torch.Tensor:
        found = torch.zeros(len(loras), rank, d_in)
        for place, lora in zip(found, loras, strict=True):
            if lora is not None:
                place[: lora.rank] = lora.a()
        return found

    def second() -> torch.Tensor:
        found = torch.zeros(len(loras), d_out, rank)
        for place, lora in zip(found, loras, strict=True):
            if lora is not None:
                place[:, : lora.rank] = lora.scale * rows(lora.b())
        return found

    def third() -> torch.Tensor:
        found = torch.ones(len(loras), d_out)
        for place, lora, weight in zip(found, loras, weights, strict=True):
            if lora is not None:
                place.copy_(lora.row_scale(lora.summed(weight, rows), rows))
        return found

    return {"lora_a": first, "lora_b": second, "lora_scale": third}


def _module(matrix: str) -> str:
    return matrix.removesuffix(".weight")
