"""An independent float32 forward of any Spec, from canonical tensors: the families' readings are checked with it.

Written from the description of ``Spec`` alone, with explicit loops, and no code of the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import Spec
from edgeloop.export.family import Reading

Tensors = dict[str, torch.Tensor]
Shared = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""K and V that depth 0 made, by layer."""


def logits(reading: Reading, ids: torch.Tensor) -> torch.Tensor:
    """Full-depth logits [S, V] of ids [S], unrouted."""
    return states(reading, ids)[1]


def states(reading: Reading, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The state [S, D] after each depth, normed where the loop norms it, and the logits [S, V]."""
    spec, tensor = spec_of(reading.program), {name: load() for name, load in reading.tensors.items()}
    x, after, positions = tensor["embed.weight"][ids], [], torch.arange(len(ids))
    for s, segment in enumerate(spec.segments):
        shared: Shared = {}
        for depth in range(segment.repeats):
            x = block(spec, tensor, s, depth, x, positions, shared)
            if segment.repeats > 1:
                normed = norm(spec, x, tensor["norm.weight"]) if spec.loop_norm else x
                after.append(normed)
                x = normed if depth < segment.repeats - 1 else x
    return after, readout(spec, tensor, x)


def readout(spec: Spec, tensor: Tensors, x: torch.Tensor) -> torch.Tensor:
    head = tensor["embed.weight" if spec.tied_embedding else "head.weight"]
    return norm(spec, x, tensor["norm.weight"]) @ head.T


def block(
    spec: Spec, tensor: Tensors, s: int, depth: int, x: torch.Tensor, positions: torch.Tensor, shared: Shared
) -> torch.Tensor:
    """All layers of segment s once, over x [N, D]: the tokens at ``positions`` [N], who see each other only."""
    segment = spec.segments[s]
    for j in range(segment.layers):
        at = f"segments.{s}.layers.{j}"
        x = _layer(spec, tensor, at, segment.per_repeat_norms, depth, x, positions, shared)
    return x


def _layer(
    spec: Spec,
    tensor: Tensors,
    at: str,
    per_repeat: bool,
    depth: int,
    x: torch.Tensor,
    positions: torch.Tensor,
    shared: Shared,
) -> torch.Tensor:
    def normed(name: str, y: torch.Tensor) -> torch.Tensor:
        weight = tensor[f"{at}.{name}.weight"]
        return norm(spec, y, weight[depth] if per_repeat else weight)

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        weight = tensor[f"{at}.{name}.weight"]
        weight = weight[depth] if weight.ndim == 3 else weight
        if f"{at}.{name}.lora_a" in tensor:
            weight = weight + tensor[f"{at}.{name}.lora_b"][depth] @ tensor[f"{at}.{name}.lora_a"][depth]
        return y @ weight.T

    length, hd = x.shape[0], spec.head_dim
    h = normed("attention_norm", x)
    q = _rotate(spec, linear("q_proj", h).view(length, spec.heads, hd), positions)
    if at in shared:
        k, v = shared[at]
    else:
        k = _rotate(spec, linear("k_proj", h).view(length, spec.kv_heads, hd), positions)
        v = linear("v_proj", h).view(length, spec.kv_heads, hd)
        if spec.kv == "shared" and depth == 0:
            shared[at] = k, v
    k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / hd**0.5
    behind = positions[:, None] - positions[None, :]
    hidden = behind < 0
    if spec.sliding_window is not None:
        hidden |= behind >= spec.sliding_window
    scores[:, hidden] = -torch.inf
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, -1)
    out = linear("o_proj", mixed)
    x = x + (normed("attention_out_norm", out) if spec.sandwich_norms else out)
    h = normed("mlp_norm", x)
    out = linear("down_proj", F.silu(linear("gate_proj", h)) * linear("up_proj", h))
    return x + (normed("mlp_out_norm", out) if spec.sandwich_norms else out)


def norm(spec: Spec, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.norm_eps) * weight


def _rotate(spec: Spec, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    half = spec.head_dim // 2
    angle = positions[:, None] * spec.rope_theta ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


AUTHORS = {
    "rec_middle_cycle": "logits_use_cache_False",
    "rec_cycle_kvshare": "logits_use_cache_True",
    "relax_lora_middle_cycle": "logits_use_cache_False",
    "mobilellm_ls_eager": "logits_use_cache_False",
    "ouro_tiny": "logits_default_T4",
}
"""Fixtures of the authors → the name of the logits that a full forward gives, with the KV policy of the checkpoint."""
