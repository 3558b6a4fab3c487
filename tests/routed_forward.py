"""The authors' forward of routed models over a whole chunk, plainly, from a Reading and ``forward`` alone.

Expert choice takes the best tokens of the chunk at each depth (``chunk-topk``); token choice is causal as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import forward
import torch
import torch.nn.functional as F

from edgeloop.export.family import Reading
from edgeloop.runtime.spec import Routing

Heads = dict[str, torch.Tensor]
Block = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(depth, x [N, D], positions [N]) → [N, D]."""
Walk = tuple[torch.Tensor, list[torch.Tensor]]
"""State [S, D] after the loop, and who ran each depth."""


def logits(reading: Reading, ids: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [S, V] of ids [S], and the positions of the tokens that ran each depth."""
    spec, tensor = reading.spec, {name: load() for name, load in reading.tensors.items()}
    heads = {name: load() for name, load in reading.heads.items()}
    assert spec.routing is not None
    x, ran = tensor["embed.weight"][ids], []
    everyone = torch.arange(len(ids))
    for s, segment in enumerate(spec.segments):

        def block(depth: int, x: torch.Tensor, who: torch.Tensor, s: int = s) -> torch.Tensor:
            return forward.block(spec, tensor, s, depth, x, who, {})

        if segment.repeats == 1:
            x = block(0, x, everyone)
            continue
        walk = _expert if spec.routing.kind == "expert" else _token
        x, ran = walk(spec.routing, heads, segment.repeats, x, block)
    return forward.readout(spec, tensor, x), [sorted(who.tolist()) for who in ran]


def _expert(routing: Routing, heads: Heads, repeats: int, x: torch.Tensor, block: Block) -> Walk:
    going, ran = torch.arange(len(x)), []
    for depth in range(repeats):
        p = _squash(routing, scores(routing, heads, "router", x[going])[:, depth])
        best = p.topk(max(1, int(routing.capacity[depth] * len(x)))).indices.sort().values
        going, p = going[best], p[best]
        h = block(depth, x[going], going)
        g = routing.alpha * p if routing.gated else torch.full_like(p, routing.alpha)
        x = x.clone()
        x[going] += g[:, None] * h
        ran.append(going)
    return x, ran


def _token(routing: Routing, heads: Heads, repeats: int, x0: torch.Tensor, block: Block) -> Walk:
    p = _squash(routing, scores(routing, heads, "router", x0))
    last = (p + heads["router.bias"]).argmax(-1)
    g = routing.alpha * p.gather(1, last[:, None]) if routing.gated else torch.ones(len(x0), 1)
    x, ran = x0.clone(), []
    for depth in range(repeats):
        who = (last >= depth).nonzero()[:, 0]
        x[who] = block(depth, x[who], who)
        ran.append(who)
    return x0 + g * x, ran


def scores(routing: Routing, heads: Heads, name: str, x: torch.Tensor) -> torch.Tensor:
    """x [N, D] → the scores of every depth [N, R]."""
    x, weight = x / routing.temperature, heads[f"{name}.weight"]
    if not routing.hidden:
        return x @ weight.T
    hidden = heads[f"{name}.hidden"].expand(len(weight), -1, -1)
    return torch.stack([F.gelu(x @ hidden[r].T) @ weight[r] for r in range(len(weight))], dim=1)


def _squash(routing: Routing, z: torch.Tensor) -> torch.Tensor:
    if routing.squash == "softmax":
        return z.softmax(-1)
    if routing.squash == "none":
        return z
    return z.sigmoid() if routing.squash == "sigmoid" else z.tanh()
