"""An independent float32 forward of any Spec, from canonical tensors: the families' readings are checked with it.

Written from the description in ``runtime.spec`` alone, with explicit loops, and no code of the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeloop.export.family import Reading
from edgeloop.runtime.spec import Spec


def logits(reading: Reading, ids: torch.Tensor) -> torch.Tensor:
    """Full-depth logits [S, V] of ids [S]."""
    spec, tensor = reading.spec, {name: load() for name, load in reading.tensors.items()}
    x = tensor["embed.weight"][ids]
    for s, segment in enumerate(spec.segments):
        for depth in range(segment.repeats):
            for j in range(segment.layers):
                x = _layer(spec, tensor, f"segments.{s}.layers.{j}", segment.per_repeat_norms, depth, x)
            if spec.loop_norm and segment.repeats > 1 and depth < segment.repeats - 1:
                x = _norm(spec, x, tensor["norm.weight"])
    head = tensor["embed.weight" if spec.tied_embedding else "head.weight"]
    return _norm(spec, x, tensor["norm.weight"]) @ head.T


def _layer(
    spec: Spec, tensor: dict[str, torch.Tensor], at: str, per_repeat: bool, depth: int, x: torch.Tensor
) -> torch.Tensor:
    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        weight = tensor[f"{at}.{name}.weight"]
        return _norm(spec, y, weight[depth] if per_repeat else weight)

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        weight = tensor[f"{at}.{name}.weight"]
        if f"{at}.{name}.lora_a" in tensor:
            weight = weight + tensor[f"{at}.{name}.lora_b"][depth] @ tensor[f"{at}.{name}.lora_a"][depth]
        return y @ weight.T

    length, hd = x.shape[0], spec.head_dim
    h = norm("attention_norm", x)
    q = _rotate(spec, linear("q_proj", h).view(length, spec.heads, hd))
    k = _rotate(spec, linear("k_proj", h).view(length, spec.kv_heads, hd))
    v = linear("v_proj", h).view(length, spec.kv_heads, hd)
    k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / hd**0.5
    scores = scores + torch.full((length, length), -torch.inf).triu(1)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, -1)
    out = linear("o_proj", mixed)
    x = x + (norm("attention_out_norm", out) if spec.sandwich_norms else out)
    h = norm("mlp_norm", x)
    out = linear("down_proj", F.silu(linear("gate_proj", h)) * linear("up_proj", h))
    return x + (norm("mlp_out_norm", out) if spec.sandwich_norms else out)


def _norm(spec: Spec, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.norm_eps) * weight


def _rotate(spec: Spec, x: torch.Tensor) -> torch.Tensor:
    half = spec.head_dim // 2
    angle = torch.arange(x.shape[0])[:, None] * spec.rope_theta ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


AUTHORS = {
    "rec_middle_cycle": "logits_use_cache_False",
    "rec_cycle_kvshare": "logits_use_cache_False",
    "relax_lora_middle_cycle": "logits_use_cache_False",
    "mobilellm_ls_eager": "logits_use_cache_False",
    "ouro_tiny": "logits_default_T4",
}
"""Fixtures of the authors → the name of the logits that a full forward with per-depth KV gives."""
