"""The names of Llama's layers."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Checkpoint
from .ties import LayerNames

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "input_layernorm_2",
    "mlp_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_attention_layernorm_2",
}


class LlamaNames(LayerNames):
    """The tensor names of a checkpoint with Llama's keys."""

    whose, embedding, stack = "Llama", "model.embed_tokens.weight", "model.layers"

    def __init__(self, checkpoint: Checkpoint, norms: Mapping[str, str] = NORMS) -> None:
        super().__init__(checkpoint)
        self.norms = norms
        self.norm = f"{self.prefix}model.norm.weight"
        self.head = f"{self.prefix}lm_head.weight"

    def shared(self, layer: int) -> list[str]:
        """Return the tensors of a layer that every layer that repeats it has too."""
        return [self.linear(layer, projection) for projection in (*ATTENTION, *MLP)]

    def layer_stem(self, layer: int) -> str:
        """Return the part of a layer's names below ``model.layers.``."""
        return str(layer)

    def module(self, layer: int, projection: str) -> str:
        """Return the name of a projection's module."""
        part = "self_attn" if projection in ATTENTION else "mlp"
        return f"model.layers.{self.layer_stem(layer)}.{part}.{projection}"

    def linear(self, layer: int, projection: str) -> str:
        """Return the name of the shared matrix."""
        return f"{self.prefix}{self.module(layer, projection)}.weight"

    def encoding(self, layer: int) -> str | None:
        """Return the name of the vector that multiplies what a layer gives, if it has one."""
        return None

    def norm_of(self, layer: int, norm: str) -> str:
        """Return the name of a norm's weight."""
        return f"{self.prefix}model.layers.{self.layer_stem(layer)}.{self.norms[norm]}.weight"
