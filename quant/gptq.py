"""Codes that make a matrix's *outputs* least wrong, for the inputs that it gets: GPTQ (arXiv 2210.17323).

A matrix W [N, K] is replaced by Q so that Σ ‖(W − Q) x‖² over its inputs x is small, which is tr((W − Q) H (W − Q)ᵀ)
with H = Σ x xᵀ [K, K]. Columns are rounded one after the other, and the error of each is passed on to those that are
still floats, as H says. Columns with the largest inputs go first, when most others are left to make up for them; scales
are chosen before, so that this order leaves the groups as they are.

A shared block's inputs are those of all its depths, so H is their sum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..runtime.model.codec import Grouped, group_of
from .pack import groups_of, nearest, packed
from .scales import searched

DAMPING = 0.01
"""What is added to H's diagonal, as a share of its mean: inputs that calibration has hardly seen keep some weight."""
_COLUMNS = 128
"""Columns whose errors are passed on together."""
NUMBERS = 1 << 22
"""Of a matrix, whose rows do not depend on each other, this many are rounded at a time: it bounds the memory."""


def gptq(weight: Tensor, hessian: Tensor, bits: int, group_size: int, drift: Tensor | None = None) -> Grouped:
    """Return codes and scales of ``weight`` [N, K] float32 for inputs whose sum of x xᵀ is ``hessian`` [K, K].

    With ``drift``, Σ (x − x̂) x̂ᵀ [K, K], of the matrix that makes of the inputs x̂ what ``weight`` makes of x
    (``correction``); ``hessian`` is then that of x̂.
    """
    columns = weight.shape[1]
    share = None if drift is None else correction(hessian, drift)
    hessian = damped(hessian)
    importance = groups_of(hessian.diagonal().float()[None], group_size)[0]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = passed_on(hessian[order][:, order])
    parts = [
        _rounded(
            part if share is None else torch.addmm(part, part, share),
            importance,
            order,
            upper,
            bits,
            group_size,
        )
        for part in weight.split(max(1, NUMBERS // columns))
    ]
    codes, scales = (np.concatenate([getattr(part, side) for part in parts]) for side in ("codes", "scales"))
    return Grouped(codes, scales, bits, columns)


def correction(hessian: Tensor, drift: Tensor) -> Tensor:
    """Return C [K, K] float32 with which the outputs of W + W C for the inputs x̂ that there are come closest to those
    of W for the inputs x that there should be.

    ``hessian`` is Σ x̂ x̂ᵀ, ``drift`` Σ (x − x̂) x̂ᵀ: C is Σ (x − x̂) x̂ᵀ (Σ x̂ x̂ᵀ)⁻¹, by least squares, the target of
    asymmetric calibration (arXiv 2504.02692).
    """
    found: Tensor = torch.cholesky_solve(drift.double().T, torch.linalg.cholesky(damped(hessian)))
    return found.T.float()


def damped(hessian: Tensor) -> Tensor:
    """Return ``hessian`` [K, K] as float64, with ``DAMPING`` on its diagonal; the identity where it is all zeros."""
    kept = hessian.to(torch.float64, copy=True)
    mean = float(kept.diagonal().mean()) or 1.0
    kept.diagonal().add_(DAMPING * mean)
    return kept


def passed_on(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor [K, K] of H⁻¹, float32: its row k is what the error of column k does to later
    ones."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _rounded(
    weight: Tensor, importance: Tensor, order: Tensor, upper: Tensor, bits: int, group_size: int
) -> Grouped:
    """Return the codes of some rows [n, K]; ``order`` [K] of the columns, in which ``upper`` has them."""
    columns = weight.shape[1]
    scales = searched(groups_of(weight, group_size), bits, importance)
    each = scales.repeat_interleave(group_of(columns, group_size), 1)[:, :columns]
    found = torch.empty(columns, len(weight))
    left, ordered = weight.T[order], each.T[order]

    def rounded(k: int, now: Tensor) -> Tensor:
        found[k] = nearest(now, ordered[k], bits)
        return found[k] * ordered[k]

    round_columns(left, upper, rounded)
    codes = torch.empty_like(found)
    codes[order] = found
    return packed(codes.T, scales, bits, group_size)


def round_columns(left: Tensor, upper: Tensor, rounded: Callable[[int, Tensor], Tensor]) -> None:
    """Round ``left`` [K, n], a column of the matrix after the other, as ``upper`` (``passed_on``) has them.

    ``rounded`` gets the number of a column and what it should be by now [n], and returns what it is as codes. ``left``
    is overwritten. A column is a row here, so that its numbers lie side by side.
    """
    columns = len(left)
    for first in range(0, columns, _COLUMNS):
        last = min(first + _COLUMNS, columns)
        errors = torch.empty(last - first, left.shape[1])
        for k in range(first, last):
            now = left[k].addmv_(errors[: k - first].T, upper[first:k, k], alpha=-1)
            errors[k - first] = (now - rounded(k, now)) / upper[k, k]
        left[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
