"""GPT-NeoX (Pythia) folders whose layers repeat: a recursive model saved as if unrolled.

Attention and MLP read the same state, each through a LayerNorm of its own, or one after the other where
use_parallel_residual is false; every matrix of a layer has a bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama, parallel
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import check_keys
from .config_values import activation, flag, number, size, token_ids
from .folded import Stack, StackNames, read_stack
from .near_ties import found_plan
from .reader import FusedRows, Source
from .rope import rotation

CLASS = "GPTNeoXForCausalLM"
ROPE = {
    "rope_theta": ("rotary_emb_base", "rope_theta"),
    "partial_rotary_factor": ("rotary_pct", "partial_rotary_factor"),
}
"""The older keys of what transformers 5 keeps in rope_parameters."""

READ = frozenset(
    """
    architectures attention_bias bos_token_id eos_token_id hidden_act hidden_size intermediate_size layer_norm_eps
    max_position_embeddings model_type num_attention_heads num_hidden_layers partial_rotary_factor rope_parameters
    rope_scaling rope_theta rotary_emb_base rotary_pct tie_word_embeddings use_parallel_residual vocab_size
    """.split()  # noqa: SIM905
)
MATRICES = {
    "o_proj": "attention.dense",
    "up_proj": "mlp.dense_h_to_4h",
    "down_proj": "mlp.dense_4h_to_h",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEADS = ("embed_out", "lm_head")
"""The head's names: in files of save_pretrained, and in a state_dict of transformers 5."""

FUSED = "attention.query_key_value"
BIASES = (f"{FUSED}.bias", "attention.dense.bias")
"""Those of the attention."""
MASKS = re.compile(r"\d+\.attention\.(bias|masked_bias)")
"""Causal masks, which old checkpoints store in each layer."""


class GptNeoxFamily:
    """model_type "gpt_neox"; what repeats is found in the weights."""

    name = "gpt_neox"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a GPT-NeoX config."""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return kind == "gpt_neox" and architectures in (None, [CLASS])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, (), where, READ)
        bias = flag(config, "attention_bias", where, True)
        width, vocab = size(config, "hidden_size", where), size(config, "vocab_size", where)
        layer = _layer(config, width, bias, where)
        sources = _sources(layer.attention.heads, bias)
        names = StackNames(
            checkpoint, "GPT-NeoX", sources, embedding="gpt_neox.embed_in.weight", stack="gpt_neox.layers"
        )
        plan = found_plan(names, size(config, "num_hidden_layers", where))
        parts, heads = f"{names.prefix}gpt_neox.", [f"{names.prefix}{name}.weight" for name in HEADS]
        bos = token_ids(config, "bos_token_id", vocab, where)
        stack = Stack(
            self.name,
            parallel if flag(config, "use_parallel_residual", where, True) else llama,
            lambda number: layer,
            layer.norm,
            sources,
            {
                "norm.weight": Source(f"{parts}final_layer_norm.weight"),
                "norm_bias.weight": Source(f"{parts}final_layer_norm.bias"),
                "head.weight": Source(next((name for name in heads if name in checkpoint.names), heads[0])),
            },
            width,
            vocab,
            size(config, "max_position_embeddings", where, 2048),
            flag(config, "tie_word_embeddings", where, False),
            "GPT-NeoX's layers (LayerNorms, and matrices with their biases)",
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
        )
        masks = {n for n in checkpoint.names if MASKS.fullmatch(n.removeprefix(names.inside))}
        return read_stack(names, plan, stack, masks)


def _layer(config: Mapping[str, Any], width: int, bias: bool, where: str) -> Layer:
    """Return the description of a layer, from config.json."""
    heads = size(config, "num_attention_heads", where)
    if width % heads:
        raise CheckpointError(
            f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    turned = rotation(config, where, width // heads, ROPE, part=0.25)
    return Layer(
        width,
        Attention(heads, heads, width // heads, turned, bias=bias, out_bias=bias),
        Mlp(
            size(config, "intermediate_size", where),
            activation(config, "hidden_act", where),
            gated=False,
            bias=True,
        ),
        NormKind(number(config, "layer_norm_eps", where, 1e-5), "layer", bias=True),
    )


def _sources(heads: int, bias: bool) -> dict[str, Source]:
    """Return the checkpoint's tensors of a layer; ``bias``: of its attention.

    The rows of the fused matrix are q, k and v of head 0, of head 1 …
    """
    found = {}
    for kind in ("weight", "bias"):
        for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
            found[f"{part}.{kind}"] = Source(f"{FUSED}.{kind}", FusedRows(place, 3, heads))
        found |= {f"{ours}.{kind}": Source(f"{theirs}.{kind}") for ours, theirs in MATRICES.items()}
    if not bias:
        found = {part: source for part, source in found.items() if source.name not in BIASES}
    for ours, theirs in NORMS.items():
        found |= {
            f"{ours}.weight": Source(f"{theirs}.weight"),
            f"{ours}_bias.weight": Source(f"{theirs}.bias"),
        }
    return found
