"""Random weights of Huginn and of models made recurrent with its class, under the names of RavenForCausalLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .synth_weights import SynthWeights

DEPTHS_OF_GRADIENT = 8  # mean_backprop_depth: says how such models are trained, and is always there


class RavenWeights(SynthWeights):
    """The tensors of the three stacks, and the adapter that a depth's state goes through."""

    def bytes_wanted(self) -> int:
        """Bytes of all tensors."""
        return super().bytes_wanted() + 2 * self.shape.hidden_size**2 * self.dtype.itemsize

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) by the authors' names."""
        shape, d = self.shape, self.shape.hidden_size
        embed = self.normal((shape.vocab_size, d), d**-0.5)
        yield "transformer.wte.weight", embed
        yield "transformer.adapter.weight", self.normal((d, 2 * d), (2 * d) ** -0.5)
        stacks = {"prelude": shape.edges, "core_block": shape.layers, "coda": shape.edges}
        for stack, layers in stacks.items():
            for number in range(layers):
                for name, tensor in self.parts():
                    yield f"transformer.{stack}.{number}.{name}", tensor
        yield "transformer.ln_f.weight", self.norm(1.0)
        yield (
            "lm_head.weight",
            embed if shape.tied else self.normal((shape.vocab_size, d), d**-0.5),
        )

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one layer: q, k and v are one, and so are gate and up."""
        shape, d = self.shape, self.shape.hidden_size
        (q, _), (kv, _), (f, _) = (self.linears[name] for name in ("q_proj", "k_proj", "up_proj"))
        yield "attn.Wqkv.weight", self.normal((q + 2 * kv, d), d**-0.5)
        yield "attn.proj.weight", self.normal((d, q), q**-0.5 * self.damping)
        yield "mlp.fc.weight", self.normal((2 * f, d), d**-0.5)
        yield "mlp.proj.weight", self.normal((d, f), f**-0.5 * self.damping)
        if shape.family == "huginn":
            yield "attn.qk_bias", self.normal((2, 1, shape.heads, shape.head_dim), 0.1)
        for number in range(1, 5 if shape.family == "huginn" else 3):
            yield f"norm_{number}.weight", self.norm(1.0)

    def config(self) -> dict[str, Any]:
        """Return config.json."""
        shape, huginn = self.shape, self.shape.family == "huginn"
        return {
            "architectures": ["RavenForCausalLM"],
            "model_type": "huginn_raven",
            "architecture_class_name": "RecurrentGPT",
            "block_class_name": "SandwichBlock",
            "norm_class_name": "RMSNorm_llama",
            "mlp_class_name": "GatedMLP",
            "nonlin_name": "SiLU",
            "injection_type": "linear",
            "state_init": "like-init",
            "bias": False,
            "vocab_size": shape.vocab_size,
            "padded_vocab_size": shape.vocab_size,
            "n_embd": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "n_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "n_layers": shape.layers + 2 * shape.edges,
            "n_layers_in_prelude": shape.edges,
            "n_layers_in_recurrent_block": shape.layers,
            "n_layers_in_coda": shape.edges,
            "mean_recurrence": shape.repeats,
            "mean_backprop_depth": DEPTHS_OF_GRADIENT,
            "block_size": shape.context,
            "norm_eps": shape.norm_eps,
            "rope_base": shape.rope_theta,
            "qk_bias": huginn,
            "tie_embeddings": shape.tied,
            "init_values": {"embed_scale": shape.hidden_size**0.5 if huginn else 1.0},
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
