"""Qwen 2 and Qwen 3 folders whose layers repeat: Llama's layers with biases of q, k and v, or norms of q and k.

Qwen 2 has a bias on q, k and v in every model; Qwen 3 norms each head of q and k before they are rotated, and has
biases where attention_bias says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import check_keys
from .config_values import flag
from .folded import ATTENTION, StackNames, llama_sources, llama_stack, read_stack
from .layer_windows import FULL, SLIDING, layer_kinds, layer_windows
from .llama_config import read_sizes
from .llama_names import NORMS
from .near_ties import found_plan
from .reader import Source

CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
DEFAULTS = {
    "qwen2": {"max_position_embeddings": 32768},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
}
"""transformers' values of keys that a config.json lacks."""


class QwenFamily:
    """Qwen2ForCausalLM or Qwen3ForCausalLM; what repeats is found in the weights."""

    name = "qwen"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Qwen 2 or Qwen 3 config."""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return isinstance(kind, str) and kind in CLASSES and architectures in (None, [CLASSES[kind]])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where, kind = str(checkpoint.folder / "config.json"), str(checkpoint.config["model_type"])
        newer = kind == "qwen3"
        check_keys(checkpoint.config, ("attention_bias",) if newer else (), where)
        config = DEFAULTS[kind] | {
            key: value for key, value in checkpoint.config.items() if value is not None
        }
        sizes = read_sizes(config, where)
        windows = _windows(config, sizes.layers, where)
        out_bias = newer and flag(config, "attention_bias", where, False)
        biased = ATTENTION if out_bias else () if newer else ATTENTION[:3]
        sources = llama_sources(biased, NORMS)
        if newer:
            sources |= {f"{side}_norm.weight": Source(f"self_attn.{side}_norm.weight") for side in "qk"}
        names = StackNames(checkpoint, "Qwen", sources, windows)

        def layer(number: int) -> Layer:
            attention = Attention(
                sizes.heads,
                sizes.kv_heads,
                sizes.head_dim,
                sizes.rotation,
                window=windows[number],
                qk_norm="heads" if newer else "none",
                bias=bool(biased),
                out_bias=out_bias,
            )
            return Layer(sizes.hidden_size, attention, Mlp(sizes.intermediate_size), NormKind(sizes.norm_eps))

        what = f"{CLASSES[kind].removesuffix('ForCausalLM')}'s layers"
        stack = llama_stack(self.name, names, sizes, llama, layer, sources, what)
        return read_stack(names, found_plan(names, sizes.layers), stack)


def _windows(config: Mapping[str, Any], layers: int, where: str) -> list[int | None]:
    """Return the window of each layer: by ``layer_types``, or those from ``max_window_layers`` on."""
    if not flag(config, "use_sliding_window", where, False):
        return [None] * layers
    first = config.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise CheckpointError(f"{where}: max_window_layers is {shown(first)}; wanted a number of layers")
    kinds = layer_kinds(config, layers, [SLIDING if i >= first else FULL for i in range(layers)], where)
    return layer_windows(config, kinds, where, 4096)
