"""OLMo 2 folders whose layers repeat: norms of what attention and MLP add, and of q and k over their full width."""

from __future__ import annotations

from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, output_norm
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import check_keys
from .config_values import flag
from .folded import ATTENTION, StackNames, llama_sources, llama_stack, read_stack
from .llama_config import read_sizes
from .near_ties import found_plan

CLASS = "Olmo2ForCausalLM"
DEFAULTS = {"rms_norm_eps": 1e-5}
"""transformers' values of keys that a config.json lacks."""
NORMS = {
    "attention_out_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


class Olmo2Family:
    """Olmo2ForCausalLM; what repeats is found in the weights."""

    name = "olmo2"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is an OLMo 2 config."""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return kind == "olmo2" and architectures in (None, [CLASS])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where = str(checkpoint.folder / "config.json")
        check_keys(checkpoint.config, ("attention_bias",), where)
        config = DEFAULTS | {key: value for key, value in checkpoint.config.items() if value is not None}
        sizes, bias = read_sizes(config, where), flag(config, "attention_bias", where, False)
        sources = llama_sources(ATTENTION if bias else (), NORMS)
        names = StackNames(checkpoint, "OLMo 2", sources)
        attention = Attention(
            sizes.heads,
            sizes.kv_heads,
            sizes.head_dim,
            sizes.rotation,
            qk_norm="width",
            bias=bias,
            out_bias=bias,
        )
        layer = Layer(sizes.hidden_size, attention, Mlp(sizes.intermediate_size), NormKind(sizes.norm_eps))
        plan = found_plan(names, sizes.layers)
        stack = llama_stack(
            self.name, names, sizes, output_norm, lambda number: layer, sources, "OLMo 2's layers"
        )
        return read_stack(names, plan, stack)
