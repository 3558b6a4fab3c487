"""The routed twin of the demo model: a router decides how many depths each token gets.

Expert-choice Mixture-of-Recursions (arXiv 2507.10524, section 2.2.1): at depth r the router scores the tokens
that are still there, the best ``capacity[r]`` of the window run the block, attending to each other only, and
x ← x + p·block(x) with p = α·σ(score). The auxiliary loss teaches each score to say on its own, without seeing
the rest of the window, whether the token is among the chosen: σ(score) ≥ 0.5 is the rule at generation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import DemoConfig, DemoModel, rotary
from .objective import Objective

AUXILIARY_COEFFICIENT = 0.01


@dataclass(frozen=True)
class RoutedConfig(DemoConfig):
    """The demo model's shapes, and its routers. ``router_capacity``: share of a window's tokens at each depth."""

    router_alpha: float = 1.0
    router_capacity: list[float] = field(default_factory=lambda: [1.0, 0.6667, 0.3333])


class RoutedModel(DemoModel):
    """The twin for training: every token is read out once, after the last depth that it ran."""

    def __init__(self, c: RoutedConfig, dropout: float = 0.0, objective: Objective | None = None) -> None:
        """``objective`` is that of an unrouted model, and not used here."""
        super().__init__(c, dropout, objective)
        self.alpha, self.capacity = c.router_alpha, c.router_capacity
        self.router = nn.Linear(c.hidden_size, c.num_recursions, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)

    def routed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, S] → state [B, S, D] after the loop, auxiliary loss."""
        batch, length = ids.shape
        cos, sin = rotary(length, self.config.head_dim, self.config.rope_theta, ids.device)
        x = F.dropout(self.embed_tokens(ids), self.dropout, self.training)
        for layer in self.prologue:
            x = layer(x, 0, cos, sin)
        going = torch.arange(length, device=ids.device).expand(batch, length)  # who ran the depth before
        losses = []
        for depth, share in enumerate(self.capacity):
            score = _pick(x, going).float() @ self.router.weight[depth]
            chosen = score.topk(max(1, int(share * length)), dim=1).indices.sort(dim=1).values
            target = torch.zeros_like(score).scatter(1, chosen, 1.0)
            losses.append(F.binary_cross_entropy_with_logits(score, target))
            gate = self.alpha * score.sigmoid().gather(1, chosen)
            going = going.gather(1, chosen)
            h = _pick(x, going)
            turns = cos[going][:, None], sin[going][:, None]  # at true positions, [B, 1, k, head_dim/2]
            for layer in self.block:
                h = layer(h, depth, *turns)
            rows = going[..., None].expand_as(h)
            x = x.scatter_add(1, rows, (gate[..., None] * h.float()).to(x.dtype))
        return x, torch.stack(losses).mean()

    def losses(self, ids: Tensor, targets: Tensor, progress: float = 0.0) -> tuple[list[Tensor], Tensor]:
        """Return the cross-entropy after the depths that tokens ran, and what training minimizes."""
        x, auxiliary = self.routed(ids)
        cos, sin = rotary(ids.shape[1], self.config.head_dim, self.config.rope_theta, ids.device)
        for layer in self.epilogue:
            x = layer(x, 0, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return [loss], loss + AUXILIARY_COEFFICIENT * auxiliary


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, S, D], rows [B, k] → [B, k, D]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
