"""What layers are made of, as torch modules: the oracle when called, the graph when exported.

Where ONNX Runtime has a fused operator, ``forward`` emits it under export and computes the same thing in
plain float32 arithmetic otherwise. Attribute names spell the stored tensors' names, so that
``state_dict()`` keys are the names in weights.safetensors.

B lanes, S new tokens, T cached tokens, D width, R depths, H heads, K KV heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused, rowwise
from .fused import Numerics

Weights = Mapping[str, Tensor]


class Matrix(nn.Module):
    """A float or quantized matrix [N, K]; its codes are as stored, or [N, K] where a row has one scale."""

    def __init__(self, weights: Weights, name: str, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.quantized = f"{name}.codes" in weights
        if self.quantized:
            codes = weights[f"{name}.codes"]
            self.register_buffer("codes", codes if numerics.group_size else codes.flatten(1))
            self.register_buffer("scales", weights[f"{name}.scales"])
        else:
            self.register_buffer("weight", weights[f"{name}.weight"])

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] → [..., N]."""
        if not self.quantized:
            return F.linear(x, self.get_buffer("weight"))
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        if self.numerics.activations is not None:
            x = self.numerics.activations(x)
        if not self.numerics.group_size:
            return rowwise.matmul(x, codes, scales)
        return fused.matmul_nbits(x, codes, scales, self.numerics)


class Table(nn.Module):
    """A float or quantized embedding table [V, D].

    Its codes are held as [V, bytes], the shape that the operator takes: turning a matrix's codes into it would
    make engines hold a second copy of the largest tensor.
    """

    def __init__(self, weights: Weights, name: str, numerics: Numerics, columns: int) -> None:
        super().__init__()
        self.numerics, self.columns = numerics, columns
        self.quantized = f"{name}.codes" in weights
        if self.quantized:
            self.register_buffer("codes", weights[f"{name}.codes"].flatten(1))
            self.register_buffer("scales", weights[f"{name}.scales"])
        else:
            self.register_buffer("weight", weights[f"{name}.weight"])

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, S] → rows [B, S, D]."""
        if not self.quantized:
            return F.embedding(ids, self.get_buffer("weight"))
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        if not self.numerics.group_size:
            return rowwise.gather(ids, codes, scales)
        return fused.gather_quantized(ids, codes, scales, self.numerics, self.columns)


class Norm(nn.Module):
    """RMSNorm whose weight is [D], or [repeats, D] and chosen by depth."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor, depth: Depth) -> Tensor:
        return self.scale(fused.rms_norm(x, self.gamma(x), self.eps), depth)

    def add(self, x: Tensor, residual: Tensor, depth: Depth) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual)."""
        normed, total = fused.add_rms_norm(x, residual, self.gamma(x), self.eps)
        return self.scale(normed, depth), total

    def gamma(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return weight if weight.ndim == 1 else torch.ones(weight.shape[-1])

    def scale(self, x: Tensor, depth: Depth) -> Tensor:
        """The fused operators take one weight for all lanes; per-depth weights multiply afterwards."""
        weight = self.get_buffer("weight")
        return x if weight.ndim == 1 else x * depth.pick(weight)


class Depth:
    """Which repeat a call computes: a number known at export, or one per lane."""

    def __init__(self, repeat: int | Tensor) -> None:
        self.repeat = repeat
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def pick(self, rows: Tensor) -> Tensor:
        """rows [R, D] → [D], or [B, 1, D] by lane."""
        if isinstance(self.repeat, int):
            return rows[self.repeat]
        # In this order engines fold the new axis into the table.
        return rows[:, None].index_select(0, self.repeat)

    def choose(self, y: Tensor, copies: int) -> Tensor:
        """y [B, S, R·N], what the matrices of all R = ``copies`` repeats give → [B, S, N] of the lane's repeat.

        All are computed, so that lanes of different depth ride in one call with the weights as they are stored.
        """
        every = y.chunk(copies, dim=-1)
        if isinstance(self.repeat, int):
            return every[self.repeat]
        masks = self.mask(tuple(range(copies))).chunk(copies, dim=-1)
        first, *rest = (part * mask for part, mask in zip(every, masks, strict=True))
        return sum(rest, start=first)

    def mask(self, owners: tuple[int, ...]) -> Tensor:
        """[B, 1, len(owners)]: 1 where the column's owner is the lane's depth. Shared by a call's layers."""
        assert isinstance(self.repeat, Tensor)
        if owners not in self._masks:
            same = self.repeat[:, None, None] == torch.tensor(owners)[None, None]
            self._masks[owners] = same.float()
        return self._masks[owners]


class LoraPair(nn.Module):
    """One projection's stacks: lora_a [R, r, in], lora_b [R, out, r]."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.register_buffer("lora_a", weights[f"{name}.lora_a"])
        self.register_buffer("lora_b", weights[f"{name}.lora_b"])


def apply_deltas(x: Tensor, parts: list[tuple[nn.Module | None, int]], depth: Depth) -> Tensor:
    """The deltas of a fused projection: x [B, S, in] → B_all · (mask ⊙ A_all · x), [B, S, Σ out].

    ``parts``: for each fused part the holder of its stacks, or None, and its output size. All depths' A are
    stacked into one matrix of rank Σ R·r and the columns of other depths are masked, so lanes of different
    depth ride in one call without copying weights. B_all is block-diagonal over the parts; it is put together
    by constant operators, which engines fold when they load the graph.
    """
    a_rows: list[Tensor] = []
    b_blocks: list[Tensor] = []
    owners: list[int] = []
    width, start = sum(size for _, size in parts), 0
    for holder, size in parts:
        if holder is not None:
            a, b = holder.get_buffer("lora_a").float(), holder.get_buffer("lora_b").float()
            if isinstance(depth.repeat, int):
                a, b = a[depth.repeat : depth.repeat + 1], b[depth.repeat : depth.repeat + 1]
            repeats, rank = a.shape[0], a.shape[1]
            a_rows.append(a.flatten(0, 1))
            columns = b.permute(0, 2, 1).flatten(0, 1)
            b_blocks.append(F.pad(columns, (start, width - start - size)) if size < width else columns)
            owners.extend(r for r in range(repeats) for _ in range(rank))
        start += size
    low = F.linear(x, torch.cat(a_rows))
    if not isinstance(depth.repeat, int):
        low = low * depth.mask(tuple(owners))
    return low @ torch.cat(b_blocks)
