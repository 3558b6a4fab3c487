"""Plain Llama folders whose layers repeat: a recursive model saved as if unrolled. Mistral is Llama with a window."""

from __future__ import annotations

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import read_llama_config
from .llama_layers import read_layers
from .llama_ties import LlamaNames, plan_from_ties
from .lora_scale import adapter_scale

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


class LlamaFamily:
    """LlamaForCausalLM or MistralForCausalLM; what repeats is found in the weights."""

    name = "llama"

    def matches(self, checkpoint: Checkpoint) -> bool:
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return kind in CLASSES and architectures in (None, [CLASSES[kind]])

    def read(self, checkpoint: Checkpoint) -> Reading:
        config = read_llama_config(checkpoint)
        names = LlamaNames(checkpoint)
        if names.layers != config.layers:
            raise CheckpointError(
                f"{checkpoint.folder}: config.json says num_hidden_layers {config.layers}, the weights have "
                f"{names.layers} layers; they do not belong together"
            )
        return read_layers(names, config, plan_from_ties(names), self.name, scale=adapter_scale(checkpoint))
