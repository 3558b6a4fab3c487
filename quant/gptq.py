"""Codes that make a matrix's *outputs* least wrong, for the inputs that it gets: GPTQ (arXiv 2210.17323).

A matrix W [N, K] is replaced by Q so that Σ ‖(W − Q) x‖² over its inputs x is small, which is tr((W − Q) H (W − Q)ᵀ)
with H = Σ x xᵀ [K, K]. Columns are rounded one after the other, and the error of each is passed on to those that are
still floats, as H says. Columns with the largest inputs go first, when most others are left to make up for them; scales
are chosen before, so that this order leaves the groups as they are.

A shared block's inputs are those of all its depths, so H is their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.model.codec import Grouped, group_of
from .pack import groups_of, nearest, packed
from .scales import searched

DAMPING = 0.01
"""What is added to H's diagonal, as a share of its mean: inputs that calibration has hardly seen keep some weight."""
_COLUMNS = 128
"""Columns whose errors are passed on together."""


def gptq(weight: Tensor, hessian: Tensor, bits: int, group_size: int) -> Grouped:
    """Return codes and scales of ``weight`` [N, K] float32 for inputs whose sum of x xᵀ is ``hessian`` [K, K]."""
    columns = weight.shape[1]
    hessian = damped(hessian)
    importance = groups_of(hessian.diagonal().float()[None], group_size)[0]
    scales = searched(groups_of(weight, group_size), bits, importance)
    each = scales.repeat_interleave(group_of(columns, group_size), 1)[:, :columns]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    found = _codes(weight[:, order], each[:, order], _passed_on(hessian[order][:, order]), bits)
    codes = torch.empty_like(found)
    codes[:, order] = found
    return packed(codes, scales, bits, group_size)


def damped(hessian: Tensor) -> Tensor:
    """Return ``hessian`` [K, K] as float64, with ``DAMPING`` on its diagonal; the identity where it is all zeros."""
    kept = hessian.double()
    mean = float(kept.diagonal().mean()) or 1.0
    return kept + torch.eye(len(kept), dtype=torch.float64) * (DAMPING * mean)


def _passed_on(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor [K, K] of H⁻¹, float32: its row k is what the error of column k does to later
    ones."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _codes(weight: Tensor, scales: Tensor, upper: Tensor, bits: int) -> Tensor:
    """Return codes around zero [N, K], column by column; ``scales`` [N, K]."""
    left, codes = weight.clone(), torch.empty_like(weight)
    columns = weight.shape[1]
    for first in range(0, columns, _COLUMNS):
        last = min(first + _COLUMNS, columns)
        errors = torch.empty(len(weight), last - first)
        for k in range(first, last):
            codes[:, k] = nearest(left[:, k], scales[:, k], bits)
            error = (left[:, k] - codes[:, k] * scales[:, k]) / upper[k, k]
            left[:, k + 1 : last] -= error[:, None] * upper[k, k + 1 : last]
            errors[:, k - first] = error
        left[:, last:] -= errors @ upper[first:last, last:]
    return codes
