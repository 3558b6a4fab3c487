"""What training minimizes: the cross-entropy of every depth, and how far the shallow read-outs are from the last.

The last depth is to be as good as it can; the shallower ones are to say what it will say. Their distance to it is
either the Kullback-Leibler divergence, which punishes every token whose probability is missed by a factor, or the
total variation, 1 - sum of min(p, q): about the share of drafts that would be wrong. First every depth learns from the
text, later the shallow ones from the last: imitated from the start, the last depth learns worse (perplexity 73 instead
of 62 after 300 steps). It does not move towards the shallow ones by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(shallow: Tensor, last: Tensor) -> Tensor:
    """KL(last || shallow) in nats, mean over tokens, of logits [N, V]."""
    return F.kl_div(shallow.log_softmax(-1), last.log_softmax(-1), log_target=True, reduction="batchmean")


def variation(shallow: Tensor, last: Tensor) -> Tensor:
    """Total variation between the softmax of logits [N, V], 0 to 1, mean over tokens."""
    return 1 - torch.minimum(shallow.softmax(-1), last.softmax(-1)).sum(-1).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": divergence, "tv": variation}


@dataclass(frozen=True)
class Objective:
    """``weights``: of each depth's cross-entropy, the last one's last. ``distillation``: of the distance of each
    shallower read-out to the last, at ``temperature``. It takes the place of their cross-entropy between the shares
    ``turn`` of the training.
    """

    weights: tuple[float, ...] = (0.1, 0.3, 1.0)
    distillation: float = 0.3
    distance: str = "tv"
    temperature: float = 0.8
    turn: tuple[float, float] = (0.5, 0.6)

    def __call__(
        self, logits: Sequence[Tensor], targets: Tensor, progress: float
    ) -> tuple[list[Tensor], Tensor]:
        """logits [R] x [N, V] of every depth, targets [N], the share of the training that is done -> each depth's
        cross-entropy, and what is minimized."""
        each = [F.cross_entropy(o.float(), targets) for o in logits]
        start, end = self.turn
        turned = min(max((progress - start) / (end - start), 0.0), 1.0) if self.distillation else 0.0
        total = self.weights[-1] * each[-1]
        for weight, loss in zip(self.weights[:-1], each[:-1], strict=True):
            total = total + weight * (1 - turned) * loss
        if turned:
            last = logits[-1].detach().float() / self.temperature
            far = [DISTANCES[self.distance](o.float() / self.temperature, last) for o in logits[:-1]]
            total = total + self.distillation * turned * torch.stack(far).mean()
        return each, total
