"""What a Parcae's config.json says, and which of its layers add an embedding of the token to their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind
from ...runtime.model.rotation import Rotation
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from .config_keys import OFF, check_keys
from .config_values import flag, number, size
from .huginn import STACKS, HuginnNames
from .ties import MAX_LAYERS

KINDS: dict[str, tuple[Any, ...]] = {
    "block_class_name": ("TransformerPreNormBlock",),
    "norm_class_name": ("RMSNorm",),
    "mlp_class_name": ("BaseMLP",),
    "nonlin_name": ("ReLU2",),
    "injection_type": ("diagonal",),
    "init_strategy": ("scaled-zero",),
    "state_init": ("zero",),
    "model_class_name": (None, "Parcae"),
    "mup_model_scaling_factor": (None, 1),
    "clip_qkv": (None,),
    "randomize_positions_from": (None,),
    **dict.fromkeys(("bias", "qk_bias", "use_abacus", "center_attention", "debias_attention"), OFF),
}
"""Keys that change the computation, and the values that are computed here. init_strategy says how embeddings and logits
are scaled, by a table in the authors' code: scaled-zero is 1 and 1."""
READ = (
    "_class_name", "block_size", "intermediate_size", "logit_softcap", "mean_recurrence", "n_embd", "norm_eps",
    "num_attention_heads", "num_key_value_heads", "padded_vocab_size", "prelude_norm", "qk_norm",
    "recurrent_embedding_dimension", "recurrent_intermediation_embedding_dimension", "recurrent_num_attention_heads",
    "rope_settings", "tie_embeddings", "vocab_size", *STACKS.values(),
)  # fmt: skip
TRAINED = (
    "_is_recurrent_block_config", "activation_checkpoint_impl", "attn_impl", "curriculum_target", "hf_config",
    "init_orthogonal", "lockstep_k", "lockstep_n", "mean_backprop_depth", "name", "padding_multiple",
    "recurrent_iteration_method", "sampling_scheme", "simple_ops", "skip_initialization", "strategy", "use_fused_head",
)  # fmt: skip
"""Keys that say how the weights were trained, or by which kernels."""


@dataclass(frozen=True)
class ParcaeConfig:
    """What config.json says. ``outer`` and ``core`` describe the layers outside the loop and in it; ``valued``: of each
    stack, the layers that add an embedding to their values, each with the embedding's number."""

    vocab_size: int
    outer: Layer
    core: Layer
    normed_heads: bool
    layers: Mapping[str, int]
    valued: Mapping[str, Mapping[int, int]]
    depths: int
    context_length: int
    prelude_norm: bool
    logit_cap: float | None
    tied: bool


class ParcaeNames(HuginnNames):
    """The names of a checkpoint: Huginn's stacks."""

    whose = "Parcae"


def read_config(checkpoint: Checkpoint, names: ParcaeNames) -> ParcaeConfig:
    """Return what config.json says; CheckpointError names a key that is missing, malformed or not understood."""
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    check_keys(config, TRAINED, where, READ, KINDS)
    if missing := next(
        (key for key, known in KINDS.items() if None not in known and config.get(key) is None), None
    ):
        raise CheckpointError(f"{where} has no {missing}; wanted {shown(KINDS[missing][0])}")
    layers = {stack: size(config, key, where) for stack, key in STACKS.items()}
    depths = size(config, "mean_recurrence", where)
    if max(depths, *layers.values()) > MAX_LAYERS:
        raise CheckpointError(
            f"{where}: {max(layers.values())} layers, {depths} depths (mean_recurrence); wanted {MAX_LAYERS} at most"
        )
    heads, width = size(config, "num_attention_heads", where), size(config, "n_embd", where)
    kv_heads, inner = (
        size(config, "num_key_value_heads", where, heads),
        size(config, "intermediate_size", where),
    )
    theta = _theta(config, where)

    def layer(width: int, heads: int, kv_heads: int, inner: int) -> Layer:
        if width % heads or width // heads % 2 or heads % kv_heads:
            raise CheckpointError(
                f"{where}: a width of {width} with {heads} heads and {kv_heads} KV heads gives no heads of an even size"
            )
        attention = Attention(heads, kv_heads, width // heads, Rotation(width // heads, theta), pairs=True)
        normal = NormKind(number(config, "norm_eps", where))
        return Layer(width, attention, Mlp(inner, "relu2", gated=False), normal)

    own = size(config, "recurrent_num_attention_heads", where, heads)
    return ParcaeConfig(
        vocab_size=size(config, "padded_vocab_size", where, size(config, "vocab_size", where)),
        outer=layer(width, heads, kv_heads, inner),
        core=layer(
            size(config, "recurrent_embedding_dimension", where, width),
            own,
            kv_heads if own == heads else own,
            size(config, "recurrent_intermediation_embedding_dimension", where, inner),
        ),
        normed_heads=flag(config, "qk_norm", where, False),
        layers=layers,
        valued=_valued(checkpoint, names, layers),
        depths=depths,
        context_length=size(config, "block_size", where),
        prelude_norm=flag(config, "prelude_norm", where, False),
        logit_cap=None if config.get("logit_softcap") is None else number(config, "logit_softcap", where),
        tied=flag(config, "tie_embeddings", where, True),
    )


def _theta(config: Mapping[str, Any], where: str) -> float:
    """Return the base of the rotation; CheckpointError for other position embeddings than RoPE's pairs."""
    settings = config.get("rope_settings")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where}: rope_settings is {shown(settings)}; wanted an object with rope_base")
    only: dict[str, tuple[Any, ...]] = {"use_rope": (True,), "rope_condense_ratio": (None, 1)}
    check_keys(settings, (), f"{where}: rope_settings", ("rope_base",), only)
    return number(settings, "rope_base", f"{where}: rope_settings")


def _valued(
    checkpoint: Checkpoint, names: ParcaeNames, layers: Mapping[str, int]
) -> dict[str, dict[int, int]]:
    """Return the layers of each stack that have both a gate and an embedding, and the embedding's number: that of the
    layer among all that are stored."""
    found: dict[str, dict[int, int]] = {}
    first = 0
    for stack in STACKS:
        found[stack] = {
            j: first + j
            for j in range(layers[stack])
            if f"{names.inside}{stack}.{j}.attn.ve_gate.weight" in checkpoint.names
            and f"{names.prefix}value_embeds.{first + j}.weight" in checkpoint.names
        }
        first += layers[stack]
    return found
