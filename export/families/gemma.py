"""Gemma 1, 2 and 3 folders whose layers repeat: norms that multiply by 1 + w, GeGLU, embeddings times √D.

Gemma 2 norms what attention and MLP add, caps the scores and the logits, and has a window on every other layer; Gemma 3
norms q and k in place of the caps, and rotates the layers with a window by another base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama
from ...runtime.model.rotation import Rotation
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import OFF, ONLY, READ, check_keys
from .config_values import flag, number, size
from .folded import ATTENTION, StackNames, llama_sources, llama_stack, read_stack
from .layer_windows import FULL, SLIDING, layer_kinds, layer_windows
from .llama_config import LlamaConfig, read_sizes
from .llama_names import NORMS
from .near_ties import found_plan
from .rope import rotation


@dataclass(frozen=True)
class Kind:
    """A generation: its class, transformers' values of keys that a config.json lacks, and the keys that it reads."""

    cls: str
    defaults: Mapping[str, Any]
    keys: tuple[str, ...] = ()


COMMON = {
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
KINDS = {
    "gemma": Kind("GemmaForCausalLM", COMMON),
    "gemma2": Kind(
        "Gemma2ForCausalLM",
        COMMON | {"query_pre_attn_scalar": 256, CAPS[0]: 50.0, CAPS[1]: 30.0},
        ("query_pre_attn_scalar", *CAPS),
    ),
    "gemma3_text": Kind(
        "Gemma3ForCausalLM",
        COMMON | {"max_position_embeddings": 131072, "query_pre_attn_scalar": 256, "rope_theta": 1e6},
        ("query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern", *CAPS),
    ),
}  # fmt: skip
CHANGES = ONLY | {
    "hidden_act": (None, "gelu", "gelu_pytorch_tanh"),
    "hidden_activation": (None, "gelu_pytorch_tanh"),
    "use_bidirectional_attention": OFF,
}
"""Keys that change the computation, and the values that are computed here. The hidden_act gelu of Gemma's first files
is the one by tanh, as transformers reads them."""
SANDWICH = NORMS | {
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


class GemmaFamily:
    """GemmaForCausalLM, Gemma2ForCausalLM or Gemma3ForCausalLM; what repeats is found in the weights."""

    name = "gemma"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is the config of a Gemma for text."""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return isinstance(kind, str) and kind in KINDS and architectures in (None, [KINDS[kind].cls])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where, kind = str(checkpoint.folder / "config.json"), str(checkpoint.config["model_type"])
        check_keys(checkpoint.config, ("attention_bias", *KINDS[kind].keys), where, READ, CHANGES)
        said = {key: value for key, value in checkpoint.config.items() if value is not None or key in CAPS}
        config = {**KINDS[kind].defaults, **said}
        sizes = read_sizes({**config, "rope_parameters": None, "rope_scaling": None}, where)
        bias, sandwich = flag(config, "attention_bias", where, False), kind != "gemma"
        norms = SANDWICH if sandwich else NORMS
        if kind == "gemma3_text":
            norms = norms | {f"{side}_norm": f"self_attn.{side}_norm" for side in "qk"}
        sources = llama_sources(ATTENTION if bias else (), norms, plus=1.0)
        kinds = layer_kinds(config, sizes.layers, _alternating(config, kind, sizes.layers, where), where)
        layers = _layers(config, kind, sizes, kinds, bias, where)
        names = StackNames(checkpoint, "Gemma", sources, [layer.attention for layer in layers])
        stack = llama_stack(
            self.name,
            names,
            sizes,
            partial(llama, sandwich=sandwich),
            layers.__getitem__,
            sources,
            "Gemma's layers",
            plus=1.0,
        )
        plan, scale = found_plan(names, sizes.layers), sizes.hidden_size**0.5
        return read_stack(
            names, plan, replace(stack, embed_scale=scale, logit_cap=_cap(config, CAPS[1], where))
        )


def _layers(
    config: Mapping[str, Any], kind: str, sizes: LlamaConfig, kinds: list[str], bias: bool, where: str
) -> list[Layer]:
    """Return the description of each layer of ``kinds``."""
    windows = layer_windows(config, kinds, where, 4096)
    query = float(sizes.head_dim)
    if kind != "gemma":
        query = number(config, "query_pre_attn_scalar", where)
    found = []
    for window, each in zip(windows, kinds, strict=True):
        attention = Attention(
            sizes.heads,
            sizes.kv_heads,
            sizes.head_dim,
            _rotation(config, kind, each, sizes.head_dim, where),
            scale=query**-0.5,
            window=window,
            cap=_cap(config, CAPS[0], where),
            qk_norm="heads" if kind == "gemma3_text" else "none",
            bias=bias,
            out_bias=bias,
        )
        mlp, normal = Mlp(sizes.intermediate_size, "gelu_tanh"), NormKind(sizes.norm_eps)
        found.append(Layer(sizes.hidden_size, attention, mlp, normal))
    return found


def _rotation(config: Mapping[str, Any], kind: str, layer: str, head_dim: int, where: str) -> Rotation:
    """Return the rotation of a layer: one for all, or Gemma 3's two, each with a table of its own in rope_parameters.

    Older files of Gemma 3 have rope_local_base_freq for layers with a window, to which rope_scaling does not apply.
    """
    if kind != "gemma3_text":
        return rotation(config, where, head_dim)
    tables = config.get("rope_parameters")
    if isinstance(tables, dict) and {FULL, SLIDING} & set(tables):
        if strange := set(tables) - {FULL, SLIDING}:
            raise CheckpointError(
                f"{where}: rope_parameters has {shown(min(strange))}; wanted {FULL} and {SLIDING}"
            )
        table = tables.get(layer)
        theta = config["rope_theta"] if layer == FULL else config.get("rope_local_base_freq", 10000.0)
        return rotation(
            {**config, "rope_theta": None, "rope_parameters": table}, where, head_dim, theta=theta
        )
    if layer == FULL:
        return rotation(config, where, head_dim)
    return Rotation(head_dim, number(config, "rope_local_base_freq", where, 10000.0))


def _alternating(config: Mapping[str, Any], kind: str, layers: int, where: str) -> list[str]:
    """Return the kinds of layers of a config that does not list them: Gemma 2's by turns, Gemma 3's five to one."""
    if kind == "gemma":
        return [FULL] * layers
    every = 2
    if kind == "gemma3_text":
        own = size(config, "_sliding_window_pattern", where, 6)
        every = size(config, "sliding_window_pattern", where, own)
    return [SLIDING if (i + 1) % every else FULL for i in range(layers)]


def _cap(config: Mapping[str, Any], key: str, where: str) -> float | None:
    return None if config.get(key) is None else number(config, key, where)
