"""The authors' forward of routed models over a whole chunk, plainly, from a Reading and ``forward`` alone.

Expert choice takes the best tokens of the chunk at each depth (``chunk-topk``); token choice is causal as it is.

Where depths share K and V, every token runs every depth, and the results of the chosen ones are kept: depth 0 makes K
and V of all positions, and at the deeper depths each token has only a query of its own. That is the authors' forward
with its cache; without one it shares nothing, although kv_sharing is enabled.
"""

from __future__ import annotations

from collections.abc import Callable

import forward
import torch
import torch.nn.functional as F

from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.family import Reading
from edgeloop.runtime.model.program import Routing

Heads = dict[str, torch.Tensor]
Block = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(depth, x [S, D], who of them [N]) → [N, D]."""
Walk = tuple[torch.Tensor, list[torch.Tensor]]
"""State [S, D] after the loop, and who ran each depth."""


def logits(
    reading: Reading, ids: torch.Tensor, threshold: float | None = None
) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [S, V] of ids [S], and the positions of the tokens that ran each depth.

    ``threshold``: expert choice goes on where the score is as high, instead of taking the best of the chunk.
    """
    spec, tensor = spec_of(reading.program), {name: load() for name, load in reading.tensors.items()}
    heads = {name: load() for name, load in reading.heads.items()}
    assert spec.routing is not None
    x, ran = tensor["embed.weight"][ids], []
    everyone = torch.arange(len(ids))
    for s, segment in enumerate(spec.segments):
        if segment.repeats == 1:
            x = forward.block(spec, tensor, s, 0, x, everyone, {})
            continue
        made: forward.Shared = {}

        def block(
            depth: int, x: torch.Tensor, who: torch.Tensor, s: int = s, made: forward.Shared = made
        ) -> torch.Tensor:
            if spec.kv == "shared":
                return forward.block(spec, tensor, s, depth, x, everyone, made)[who]
            return forward.block(spec, tensor, s, depth, x[who], who, {})

        if spec.routing.kind == "expert":
            x, ran = _expert(spec.routing, heads, segment.repeats, x, block, threshold)
        else:
            x, ran = _token(spec.routing, heads, segment.repeats, x, block)
    return forward.readout(spec, tensor, x), [sorted(who.tolist()) for who in ran]


def _expert(
    routing: Routing, heads: Heads, repeats: int, x: torch.Tensor, block: Block, threshold: float | None
) -> Walk:
    going, ran = torch.arange(len(x)), []
    for depth in range(repeats):
        p = _squash(routing, scores(routing, heads, "router", x[going])[:, depth])
        if threshold is None:
            best = p.topk(max(1, int(routing.capacity[depth] * len(x)))).indices.sort().values
        else:
            best = (p >= threshold).nonzero()[:, 0]
        going, p = going[best], p[best]
        h = block(depth, x, going)
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
        x[who] = block(depth, x, who)
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
