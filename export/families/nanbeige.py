"""Nanbeige 4.2: the whole stack looped, as a rule with the final norm after every loop; heads of a size of their own.

The authors' modeling_nanbeige.py has further ways to loop and to mix residual streams behind flags; those are refused
by name. How often the stack runs is in the config alone, and never assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import OFF, ONLY, READ, check_keys
from .config_values import flag, size
from .folded import ATTENTION, MLP, StackNames, llama_sources, llama_stack, read_stack
from .llama_config import read_sizes
from .llama_names import NORMS
from .reader import Source
from .ties import MAX_LAYERS, TiedRun

logger = logging.getLogger(__name__)

NONE: tuple[Any, ...] = (None, False, [], 0)
KINDS = ONLY | {
    "enable_double_loop_split": OFF,
    "loop_share_kv": OFF,
    "enable_hyper_connection": OFF,
    "enable_mhc": OFF,
    "enable_h_res_identity": OFF,
    "enable_depth_attention": OFF,
    "mhc_diff_for_loop": OFF,
    "emb_neighbor_num": NONE,
    "emb_split_num": NONE,
    "insert_ngram_layer_idx": NONE,
    "ngram_insert_all_layers": OFF,
}
"""Flags that change the computation, and the values that are computed here."""
IDLE = (
    "attention_bias", "auto_map", "depth_attention_recent_window", "depth_attention_static_anchor_once",
    "depth_attention_stride", "emb_tp_num", "loop_loss_weights", "loop_middle_layers",
    "mhc_double_stream_position_for_loop",
    "mhc_identity_nohresparam", "mhc_init_gating_factor", "mhc_sinkhorn_iterations", "mlp_bias",
    "ngram_compressed_tokenizer", "ngram_embedding_hidden_size", "ngram_fused_mode", "ngram_layer_downproject_size",
    "ngram_mod_force_prime", "ngram_vocab_size_ratio", "num_loops", "num_residual_streams", "qk_layernorm",
    "skip_loop_final_norm", "skip_ngram_for_input",
)  # fmt: skip
"""Keys that are read here, and those that say something only beside a flag of ``KINDS``."""


class NanbeigeFamily:
    """model_type "nanbeige"."""

    name = "nanbeige"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Nanbeige config."""
        return checkpoint.config.get("model_type") == "nanbeige"

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, IDLE, where, READ, KINDS)
        repeats, sizes = loops(config, where), read_sizes(config, where)
        bias, mlp_bias, normed = (
            flag(config, key, where, False) for key in ("attention_bias", "mlp_bias", "qk_layernorm")
        )
        sources = llama_sources([*(ATTENTION if bias else ()), *(MLP if mlp_bias else ())], NORMS)
        if normed:
            sources |= {f"{side}_norm.weight": Source(f"self_attn.{side}_layernorm.weight") for side in "qk"}
        names = StackNames(checkpoint, "Nanbeige", sources)
        if names.layers != sizes.layers or repeats * sizes.layers > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: num_hidden_layers {sizes.layers} × {repeats} loops, while the weights have {names.layers} "
                f"layers; wanted equal numbers of layers and at most {MAX_LAYERS} together"
            )
        layer = Layer(
            sizes.hidden_size,
            Attention(
                sizes.heads,
                sizes.kv_heads,
                sizes.head_dim,
                sizes.rotation,
                qk_norm="heads" if normed else "none",
                bias=bias,
                out_bias=bias,
            ),
            Mlp(sizes.intermediate_size, bias=mlp_bias),
            NormKind(sizes.norm_eps),
        )
        stack = llama_stack(
            self.name,
            names,
            sizes,
            llama,
            lambda number: layer,
            sources,
            "Nanbeige's layers, as config.json says",
        )
        each = not flag(config, "skip_loop_final_norm", where, False)
        plan = [TiedRun(tuple((number,) * repeats for number in range(names.layers)))]
        return read_stack(names, plan, replace(stack, norm_each_depth=each))


def loops(config: Mapping[str, Any], where: str) -> int:
    """Return how often the stack runs: one more than ``loop_loss_weights`` where there are any, else ``num_loops``."""
    weights = config.get("loop_loss_weights")
    if weights is not None and not isinstance(weights, list):
        raise CheckpointError(f"{where}: loop_loss_weights is {shown(weights)}; wanted a list")
    if not weights:
        return size(config, "num_loops", where)
    if config.get("num_loops") not in (None, len(weights) + 1):
        logger.warning(
            "%s: num_loops is %s, and the authors' code goes by the %d loop_loss_weights: the stack runs %d times",
            where,
            shown(config["num_loops"]),
            len(weights),
            len(weights) + 1,
        )
    return len(weights) + 1
