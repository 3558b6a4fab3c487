"""The recipe of a training run, its log, and its validation loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .model import DemoConfig, DemoModel
from .objective import Objective

Watch = Callable[[int, dict[str, Any] | None], None]
"""(steps done, the row of the log that was just added)."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How long, on how much, against what. ``rate``: the highest learning rate, of both optimizers. ``own_norms``: each
    depth learns norms of its own; without, all depths learn the same."""

    steps: int = 2700
    batch: int = 16
    length: int = 512
    dropout: float = 0.25
    rate: float = 4e-3
    decay: float = 0.1
    seed: int = 0
    every: int = 225
    own_norms: bool = True
    objective: Objective = field(default_factory=Objective)

    def name(self, config: DemoConfig, device: str) -> str:
        """All that two runs must share, to be one."""
        return json.dumps({**asdict(self), **config.as_json(), "device": device}, sort_keys=True)


@torch.no_grad()
def validation_loss(model: DemoModel, tokens: Tensor, length: int, limit: int | None = None) -> list[float]:
    """Mean cross-entropy (nats a token) of each read-out, over disjoint windows in order."""
    model.eval()
    device = model.embed_tokens.weight.device
    count = (len(tokens) - 1) // length if limit is None else min(limit, (len(tokens) - 1) // length)
    total: list[list[float]] = []
    for i in range(count):
        ids = tokens[i * length : (i + 1) * length + 1].to(device)[None]
        total.append([float(x) for x in model.losses(ids[:, :-1], ids[:, 1:])[0]])
    model.train()
    return [float(x) for x in np.mean(total, axis=0)]
