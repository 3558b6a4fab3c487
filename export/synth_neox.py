"""Random weights of a GPT-NeoX (Pythia) whose layers repeat, under the names of GPTNeoXForCausalLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .synth_shapes import Shape
from .synth_weights import SynthWeights

BIAS = 0.02  # small beside activations near 1, and large enough that one that is forgotten shows


class NeoxWeights(SynthWeights):
    """The layers written out one by one; those that repeat are one object."""

    def __init__(
        self, shape: Shape, generator: torch.Generator | None, dtype: torch.dtype, rank: int
    ) -> None:
        super().__init__(shape, generator, dtype, rank)
        d, f = shape.hidden_size, shape.intermediate_size
        self.linears = {
            "attention.query_key_value": (3 * d, d),
            "attention.dense": (d, d),
            "mlp.dense_h_to_4h": (f, d),
            "mlp.dense_4h_to_h": (d, f),
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) by the authors' names."""
        shape, d = self.shape, self.shape.hidden_size
        yield "gpt_neox.embed_in.weight", self.normal((shape.vocab_size, d), d**-0.5)
        made: dict[int, dict[str, torch.Tensor]] = {}
        for number, source in enumerate(shape.stored_layers):
            if source not in made:
                made[source] = dict(self.parts())
            for name, tensor in made[source].items():
                yield f"gpt_neox.layers.{number}.{name}", tensor
        yield "gpt_neox.final_layer_norm.weight", self.norm(1.0)
        yield "gpt_neox.final_layer_norm.bias", self.normal((d,), BIAS)
        yield "embed_out.weight", self.normal((shape.vocab_size, d), d**-0.5)

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one layer."""
        for name, (d_out, d_in) in self.linears.items():
            leaves = name in ("attention.dense", "mlp.dense_4h_to_h")
            yield f"{name}.weight", self.normal((d_out, d_in), d_in**-0.5 * (self.damping if leaves else 1.0))
            yield f"{name}.bias", self.normal((d_out,), BIAS)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.weight", self.norm(1.0)
            yield f"{name}.bias", self.normal((self.shape.hidden_size,), BIAS)

    def config(self) -> dict[str, Any]:
        """Return config.json."""
        shape = self.shape
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": len(shape.stored_layers),
            "num_attention_heads": shape.heads,
            "hidden_act": "gelu",
            "attention_bias": True,
            "use_parallel_residual": True,
            "rotary_pct": 0.25,
            "rotary_emb_base": shape.rope_theta,
            "max_position_embeddings": shape.context,
            "layer_norm_eps": shape.norm_eps,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
