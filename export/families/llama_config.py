"""What a Llama-like config.json may say: the sizes that are read, and every key that is refused by name.

A key that changes what the model computes and is not understood must never be passed over: the export would
be silently wrong.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint

logger = logging.getLogger(__name__)

MAX_SIZE = 1 << 24  # of any one dimension; far above real models, far below what overflows a product
OFF = (None, False)

ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "attention_bias": OFF,
    "mlp_bias": OFF,
    "qkv_bias": OFF,
    "use_bias": OFF,
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
    "is_encoder_decoder": OFF,
    "add_cross_attention": OFF,
    "rope_interleaved": OFF,
}
"""Keys that change the computation → the values that are computed here."""

WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
"""Keys that say which layers attend to the last tokens only; ``_sliding_window`` reads them together."""

CHANGES = re.compile(
    "loop|recur|shar|depth|exit|mor|ut_steps|double|softcap|multiplier|scal|qk_norm|expert|window|alibi"
    "|parallel|n_gram|hyper_conn|router|dora"
)
"""An unknown key with one of these in its name is a loop flag or a change of the computation: refused."""


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama-like model. ``layers`` is num_hidden_layers, whatever the family means by it."""

    layers: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    context_length: int
    sliding_window: int | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_llama_config(checkpoint: Checkpoint, understood: Collection[str] = ()) -> LlamaConfig:
    """config.json → sizes; CheckpointError names a key that is missing, malformed or not understood.

    ``understood`` are keys that the family itself reads.
    """
    config = checkpoint.config
    where = str(checkpoint.folder / "config.json")
    _refuse(config, understood, where)
    hidden = size(config, "hidden_size", where)
    heads = size(config, "num_attention_heads", where)
    kv_heads = size(config, "num_key_value_heads", where, heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}; add head_dim"
        )
    head_dim = size(config, "head_dim", where, hidden // heads)
    if head_dim % 2:
        raise CheckpointError(f"{where}: head_dim {head_dim} is odd; rotary embeddings need an even one")
    vocab = size(config, "vocab_size", where)
    bos = token_ids(config, "bos_token_id", vocab, where)
    return LlamaConfig(
        layers=size(config, "num_hidden_layers", where),
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=size(config, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=number(config, "rms_norm_eps", where, 1e-6),
        rope_theta=_rope_theta(config, where),
        context_length=size(config, "max_position_embeddings", where, 2048),
        sliding_window=_sliding_window(config, where),
        tie_word_embeddings=flag(config, "tie_word_embeddings", where, False),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
    )


def size(table: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A positive integer; ``default`` where the key is absent or null."""
    value = table.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"{where} has no {key}; wanted a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted a positive integer up to {MAX_SIZE}")
    return value


def number(table: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A positive finite number; ``default`` where the key is absent or null."""
    value = table.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted a positive number")
    return float(value)


def flag(table: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    """true or false; ``default`` where the key is absent or null."""
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted true or false")
    return value


def shown(value: object) -> str:
    """A value for an error message, on one line of bearable length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _refuse(config: Mapping[str, Any], understood: Collection[str], where: str) -> None:
    for key, value in config.items():
        if key in understood or key in WINDOW:
            continue
        if key in ONLY:
            if value not in ONLY[key]:
                raise CheckpointError(
                    f"{where}: {key} is {shown(value)}, which is not supported; wanted {ONLY[key][0]!r} or no such key"
                )
        elif key in ("rope_scaling", "rope_parameters") or value is None or value is False:
            continue  # the former are read by _rope_theta; a flag that is off changes nothing
        elif CHANGES.search(key.lower()):
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, and this family does not know the key; "
                "a flag that may change the computation is not passed over"
            )


def _sliding_window(config: Mapping[str, Any], where: str) -> int | None:
    """Tokens that every layer attends to at most, the newest included; None: all.

    As transformers takes the keys: ``layer_types`` decides where there is one; else a window is every layer's
    (Mistral), or beside ``use_sliding_window: true`` that of the layers from ``max_window_layers`` on (Qwen).
    """
    types = config.get("layer_types")
    kinds = {str(t) for t in types} if isinstance(types, list) else {str(types)} - {"None"}
    if len(kinds) > 1 or kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"{where}: layer_types is {shown(types)}; wanted full_attention or sliding_attention for all layers"
        )
    if not flag(config, "use_sliding_window", where, True) or config.get("sliding_window") is None:
        if "sliding_attention" in kinds:
            raise CheckpointError(
                f"{where}: layer_types asks for sliding_attention, and no sliding_window is on"
            )
        return None
    window = size(config, "sliding_window", where)
    if kinds:
        return window if "sliding_attention" in kinds else None
    if not config.get("use_sliding_window"):
        if config.get("model_type") == "llama":
            logger.warning(
                "sliding_window %d is read as every layer's, though LlamaForCausalLM of transformers takes no "
                "notice of the key; delete it from config.json if the model was trained without",
                window,
            )
        return window
    first, layers = config.get("max_window_layers"), size(config, "num_hidden_layers", where)
    if isinstance(first, bool) or not isinstance(first, int) or 0 < first < layers:
        raise CheckpointError(
            f"{where}: max_window_layers is {shown(first)}: a window for some of the {layers} layers is not "
            "supported; wanted 0 or all of them"
        )
    return window if first <= 0 else None


def _rope_theta(config: Mapping[str, Any], where: str) -> float:
    """rope_theta, from the key of that name or from transformers 5's rope_parameters."""
    found = {}
    if config.get("rope_theta") is not None:
        found["rope_theta"] = number(config, "rope_theta", where)
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(f"{where}: {key} is {shown(rope)}; wanted an object or null")
        for name, value in rope.items():
            if name in ("rope_type", "type"):
                supported = value in (None, "default")
            elif name == "partial_rotary_factor":
                supported = value in (None, 1.0)
            else:
                supported = name == "rope_theta" or value is None
            if not supported:
                raise CheckpointError(
                    f"{where}: {key}.{name} is {shown(value)}; wanted plain rotary embeddings (rope_type default)"
                )
        if rope.get("rope_theta") is not None:
            found[f"{key}.rope_theta"] = number(rope, "rope_theta", f"{where}: {key}")
    if len(set(found.values())) > 1:
        raise CheckpointError(f"{where}: {' and '.join(found)} differ: {sorted(set(found.values()))}")
    return next(iter(found.values()), 10000.0)


def token_ids(config: Mapping[str, Any], key: str, vocab: int, where: str) -> tuple[int, ...]:
    """The ids of bos or eos: absent, one, or a list."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}; wanted token ids below vocab_size {vocab}"
            )
    return tuple(ids)
