"""The demo model for training: 1 prologue layer, K shared layers run R times, 1 epilogue layer.

Llama blocks (RMSNorm, RoPE, grouped-query attention, SwiGLU). Each depth has its own norms and its own
LoRA on the attention projections (Relaxed Recursive Transformers, arXiv 2410.20672, section 2.3). The epilogue
and head read out **every** depth, so each one is trained to be an exit. Parameter names are the names of
the saved checkpoint, which the ``edgeloop`` family reads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .objective import Objective


@dataclass(frozen=True)
class DemoConfig:
    """Shapes of the demo model; ``save`` writes them as config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 1152
    block_intermediate_size: int | None = None  # of the block's layers, where it is another
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    prologue_layers: int = 1
    block_layers: int = 2
    num_recursions: int = 3
    epilogue_layers: int = 1
    lora_rank: int = 16
    lora_scale: float = 1.0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 512  # the windows of training: beyond them perplexity rises
    tie_word_embeddings: bool = True
    bos_token_id: int = 0
    eos_token_id: int = 0

    def as_json(self) -> dict[str, object]:
        """Return config.json."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"model_type": "edgeloop", "architectures": ["EdgeloopForCausalLM"], **given}


class PerDepthNorm(nn.Module):
    """RMSNorm whose weight [R, D] has a row a depth."""

    def __init__(self, depths: int, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(depths, width))
        self.eps = eps

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Return x normed with the weights of ``depth``."""
        return F.rms_norm(x, x.shape[-1:], self.weight[depth].to(x.dtype), self.eps)


class RelaxedLinear(nn.Module):
    """y = x Wᵀ + s · x A[d]ᵀ B[d]ᵀ; no delta when ``rank`` is 0."""

    def __init__(self, d_in: int, d_out: int, depths: int, rank: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in).normal_(std=0.02))
        self.scale = scale
        if rank:
            self.lora_a = nn.Parameter(torch.empty(depths, rank, d_in).normal_(std=d_in**-0.5))
            self.lora_b = nn.Parameter(torch.zeros(depths, d_out, rank))
        self.rank = rank

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Return y with the delta of ``depth``."""
        y = F.linear(x, self.weight)
        if self.rank:
            y = y + self.scale * F.linear(F.linear(x, self.lora_a[depth]), self.lora_b[depth])
        return y


def rotary(
    length: int, head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """cos, sin [S, head_dim/2] of positions 0 … S−1, rotate-half convention."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the heads of x rotated by cos and sin."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Layer(nn.Module):
    """One transformer layer, applied at ``depths`` depths."""

    def __init__(self, c: DemoConfig, depths: int, rank: int, dropout: float, mlp: int | None = None) -> None:
        """``mlp``: the width of the MLP, where it is another than the model's."""
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.input_layernorm = PerDepthNorm(depths, d, c.rms_norm_eps)
        self.post_attention_layernorm = PerDepthNorm(depths, d, c.rms_norm_eps)
        self.q_proj = RelaxedLinear(d, q, depths, rank, c.lora_scale)
        self.k_proj = RelaxedLinear(d, kv, depths, rank, c.lora_scale)
        self.v_proj = RelaxedLinear(d, kv, depths, rank, c.lora_scale)
        self.o_proj = RelaxedLinear(q, d, depths, rank, c.lora_scale)
        f = mlp or c.intermediate_size
        self.gate_proj = RelaxedLinear(d, f, depths, 0, c.lora_scale)
        self.up_proj = RelaxedLinear(d, f, depths, 0, c.lora_scale)
        self.down_proj = RelaxedLinear(f, d, depths, 0, c.lora_scale)
        self.dropout = dropout

    def forward(self, x: Tensor, depth: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Return x [B, S, D] after the layer at ``depth``."""
        batch, length, _ = x.shape
        h = self.input_layernorm(x, depth)
        q, k, v = (
            p(h, depth).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        a = self.o_proj(a.transpose(1, 2).reshape(batch, length, -1), depth)
        x = x + F.dropout(a, self.dropout, self.training)
        h = self.post_attention_layernorm(x, depth)
        m = self.down_proj(F.silu(self.gate_proj(h, depth)) * self.up_proj(h, depth), depth)
        return x + F.dropout(m, self.dropout, self.training)


class DemoModel(nn.Module):
    """forward(ids [B, S]) → logits of every depth, [R] × [B, S, V]."""

    def __init__(self, c: DemoConfig, dropout: float = 0.0, objective: Objective | None = None) -> None:
        """``objective``: what ``losses`` minimizes; without one, the sum of every depth's cross-entropy."""
        super().__init__()
        self.config, self.dropout = c, dropout
        self.objective = objective or Objective((1.0,) * c.num_recursions, 0.0)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.prologue = nn.ModuleList(Layer(c, 1, 0, dropout) for _ in range(c.prologue_layers))
        self.block = nn.ModuleList(
            Layer(c, c.num_recursions, c.lora_rank, dropout, c.block_intermediate_size)
            for _ in range(c.block_layers)
        )
        self.epilogue = nn.ModuleList(Layer(c, 1, 0, dropout) for _ in range(c.epilogue_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)

    def states(self, ids: Tensor) -> list[Tensor]:
        """The loop's state after every depth, [R] × [B, S, D]."""
        cos, sin = rotary(ids.shape[1], self.config.head_dim, self.config.rope_theta, ids.device)
        x = F.dropout(self.embed_tokens(ids), self.dropout, self.training)
        for layer in self.prologue:
            x = layer(x, 0, cos, sin)
        out = []
        for depth in range(self.config.num_recursions):
            for layer in self.block:
                x = layer(x, depth, cos, sin)
            out.append(x)
        return out

    def forward(self, ids: Tensor, last: int = 0) -> list[Tensor]:
        """``last``: read out only so many tokens, the last ones; 0 for all."""
        cos, sin = rotary(ids.shape[1], self.config.head_dim, self.config.rope_theta, ids.device)
        # All depths go through the epilogue as one batch: R small calls would cost more than one large one.
        x = torch.cat(self.states(ids))
        for layer in self.epilogue:
            x = layer(x, 0, cos, sin)
        logits = F.linear(self.norm(x[:, -last:]), self.embed_tokens.weight)
        return list(logits.chunk(self.config.num_recursions))

    def losses(self, ids: Tensor, targets: Tensor, progress: float = 0.0) -> tuple[list[Tensor], Tensor]:
        """ids, targets [B, S] → cross-entropy (nats a token) of each read-out, and what training minimizes when the
        share ``progress`` of it is done."""
        return self.objective([o.flatten(0, 1) for o in self(ids)], targets.flatten(), progress)
