"""MobileLLM-LS: every layer is applied twice in a row, norms included."""

from __future__ import annotations

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_values import flag
from .llama_config import read_llama_config
from .llama_layers import read_layers
from .llama_names import LlamaNames
from .lora_scale import adapter_scale
from .ties import TiedRun

REPEATS = 2  # fixed in the authors' forward, in no config


class MobileLlmFamily:
    """``layer_sharing: true``; the weights hold each layer once."""

    name = "mobilellm"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the config shares layers."""
        return checkpoint.config.get("layer_sharing") is True

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where = str(checkpoint.folder / "config.json")
        if (kind := checkpoint.config.get("model_type")) not in ("mobilellm", "llama"):
            raise CheckpointError(
                f"{where}: layer_sharing with model_type {kind!r}; mobilellm or llama is supported"
            )
        config = read_llama_config(checkpoint, ("layer_sharing", "share_embedding", "auto_map"))
        share = flag(checkpoint.config, "share_embedding", where, False)
        names = LlamaNames(checkpoint)
        if names.layers != config.layers:
            raise CheckpointError(
                f"{where}: num_hidden_layers is {config.layers}, the weights have {names.layers} layers; "
                "wanted the number of stored layers, each applied twice"
            )
        plan = [TiedRun(((layer,) * REPEATS,)) for layer in range(names.layers)]
        return read_layers(
            names, config, plan, self.name, scale=adapter_scale(checkpoint), share_embedding=share
        )
