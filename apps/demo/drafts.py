"""How often the shallow depths foresee the last one: on the model's own text, as pipelined decoding would use them.

The text is what the last depth chooses, greedily or by Gumbel noise at a temperature, with the same noise for all
depths of a position (``runtime/decode/sampling.py``). A draft is right where a shallow depth would have chosen the
same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import DemoModel

TEXTS, PROMPT, TOKENS = 32, 24, 96


def prompts(tokens: Tensor, texts: int = TEXTS, length: int = PROMPT) -> Tensor:
    """[texts, length] pieces of the token stream, evenly spaced."""
    starts = torch.linspace(0, len(tokens) - length, texts).long()
    return torch.stack([tokens[s : s + length] for s in starts])


@torch.no_grad()
def acceptance(
    model: DemoModel, prompts: Tensor, temperature: float, tokens: int = TOKENS, seed: int = 0
) -> list[float]:
    """The share of right drafts of every depth but the last, while texts go on from prompts [B, P]."""
    was, device = model.training, model.embed_tokens.weight.device
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    ids = prompts.to(device)
    right = torch.zeros(model.config.num_recursions, dtype=torch.float64)
    for _ in range(tokens):
        scores = torch.stack([logits[:, -1].float() for logits in model(ids, last=1)])  # [R, B, V]
        if temperature:
            uniform = torch.rand(scores.shape[1:], generator=generator, dtype=torch.float64).clamp_min(1e-300)
            scores = scores.double() / temperature - (-uniform.log()).log().to(device)
        chosen = scores.argmax(-1)  # [R, B]
        right += (chosen == chosen[-1]).double().mean(1).cpu()
        ids = torch.cat((ids, chosen[-1][:, None]), 1)
    model.train(was)
    return [float(x) for x in right[:-1] / tokens]


@torch.no_grad()
def agreement(model: DemoModel, tokens: Tensor, length: int) -> list[float]:
    """The share of tokens [N] for which the likeliest next token of a shallow depth is the last one's."""
    was, device = model.training, model.embed_tokens.weight.device
    model.eval()
    right = torch.zeros(model.config.num_recursions, dtype=torch.float64)
    count = len(tokens) // length
    for i in range(count):
        ids = tokens[i * length : (i + 1) * length].to(device)[None]
        chosen = torch.stack([logits[0].argmax(-1) for logits in model(ids)])  # [R, S]
        right += (chosen == chosen[-1]).double().mean(1).cpu()
    model.train(was)
    return [float(x) for x in right[:-1] / count]
