"""Scales with the least squared error: found by trying some, group by group."""

from __future__ import annotations

import torch
from torch import Tensor

from .pack import code_range, nearest, storable

LEAST, MOST, STEPS = 0.6, 1.1, 26
"""What is tried: shares of the scale that makes the largest value the highest code. Below 1 the largest values are
cut off and all others are kept better; up to 8/7 a group whose largest value is negative has it as its lowest code."""


def searched(x: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """Return the scales [N, groups] with which the codes of x [N, groups, G] have the least squared error.

    ``importance`` [groups, G]: what an error of each column weighs.
    """
    peak = x.abs().amax(-1) / code_range(bits)[1]
    best, least = storable(peak), torch.full_like(peak, torch.inf)
    for share in (1.0, *torch.linspace(LEAST, MOST, STEPS).tolist()):
        scales = storable(peak * share)
        error = (x - nearest(x, scales[..., None], bits) * scales[..., None]).square_()
        total = (error if importance is None else error.mul_(importance)).sum(-1)
        better = total < least
        best, least = torch.where(better, scales, best), torch.where(better, total, least)
    return best
