"""Plain Llama folders whose layers repeat: a recursive model saved as if unrolled. Mistral is Llama with a window."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import read_llama_config
from .llama_layers import read_layers
from .llama_names import LlamaNames
from .lora_scale import adapter_scale
from .near_ties import found_plan

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


class LlamaFamily:
    """LlamaForCausalLM or MistralForCausalLM; what repeats is found in the weights."""

    name = "llama"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Llama or Mistral config."""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return isinstance(kind, str) and kind in CLASSES and architectures in (None, [CLASSES[kind]])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config = read_llama_config(checkpoint)
        names = LlamaNames(checkpoint)
        plan = found_plan(names, config.layers)
        return read_layers(names, config, plan, self.name, scale=adapter_scale(checkpoint))
