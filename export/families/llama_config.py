"""Reads a Llama-like config.json: the sizes of the model, each checked where it is read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.rotation import Rotation
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from .config_keys import WINDOW, check_keys
from .config_values import flag, number, size, token_ids
from .rope import rotation

logger = logging.getLogger(__name__)

MISTRAL_WINDOW = 4096
"""transformers' sliding_window of a Mistral whose config.json has no such key."""


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
    rotation: Rotation
    context_length: int
    sliding_window: int | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_llama_config(checkpoint: Checkpoint, understood: Collection[str] = ()) -> LlamaConfig:
    """Return the sizes in config.json; CheckpointError names a key that is missing, malformed or not understood.

    ``understood`` are keys that the family itself reads.
    """
    config = checkpoint.config
    where = str(checkpoint.folder / "config.json")
    check_keys(config, understood, where)
    return replace(read_sizes(config, where), sliding_window=_sliding_window(config, where))


def read_sizes(config: Mapping[str, Any], where: str) -> LlamaConfig:
    """Return the sizes of a config with Llama's keys, without a window; CheckpointError names a key that is missing
    or malformed."""
    hidden = size(config, "hidden_size", where)
    heads = size(config, "num_attention_heads", where)
    kv_heads = size(config, "num_key_value_heads", where, heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; add head_dim"
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
        rotation=rotation(config, where, head_dim),
        context_length=size(config, "max_position_embeddings", where, 2048),
        sliding_window=None,
        tie_word_embeddings=flag(config, "tie_word_embeddings", where, False),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
    )


def _sliding_window(config: Mapping[str, Any], where: str) -> int | None:
    """Return how many tokens every layer attends to at most, the newest included; None: all.

    The keys are read as the code of the model_type does: Mistral does not read ``use_sliding_window``, Ouro (as
    Qwen) reads all of ``WINDOW``, Llama none of them.
    """
    types = config.get("layer_types")
    kinds = {str(t) for t in types} if isinstance(types, list) else {str(types)} - {"None"}
    if kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"{where}: layer_types is {shown(types)}; wanted full_attention or sliding_attention for all layers"
        )
    read = {"mistral": _mistral_window, "ouro": _ouro_window}.get(str(config.get("model_type")))
    window = read(config, kinds, where) if read else None
    switched = flag(config, "use_sliding_window", where, config.get("sliding_window") is not None)
    said = switched or "sliding_attention" in kinds
    if said != (window is not None) and read is not _ouro_window:
        logger.warning(
            "%s: %s is not what the code of model_type %s goes by: read as %s",
            where,
            " and ".join(key for key in WINDOW if config.get(key) is not None) or "no sliding_window",
            config.get("model_type"),
            "without a sliding window" if window is None else f"with a sliding window of {window} tokens",
        )
    return window


def _mistral_window(config: Mapping[str, Any], kinds: set[str], where: str) -> int | None:
    """Return ``sliding_window`` of every layer; transformers' default where there is no such key.

    With ``layer_types`` transformers takes the model for a Ministral, which goes by them.
    """
    _uniform(config, kinds, where)
    if config.get("sliding_window", MISTRAL_WINDOW) is None or "full_attention" in kinds:
        return None
    return size(config, "sliding_window", where, MISTRAL_WINDOW)


def _ouro_window(config: Mapping[str, Any], kinds: set[str], where: str) -> int | None:
    """Return the window of ``layer_types`` where there are any; else layers from ``max_window_layers`` on have it."""
    _uniform(config, kinds, where)
    if not flag(config, "use_sliding_window", where, False) or config.get("sliding_window") is None:
        if "sliding_attention" in kinds:
            raise CheckpointError(f"{where}: layer_types has sliding_attention, and no sliding_window is set")
        return None
    window = size(config, "sliding_window", where)
    if kinds:
        return window if "sliding_attention" in kinds else None
    first, layers = config.get("max_window_layers"), size(config, "num_hidden_layers", where)
    if isinstance(first, bool) or not isinstance(first, int) or 0 < first < layers:
        raise CheckpointError(
            f"{where}: max_window_layers is {shown(first)}: a window for some of the {layers} layers is not "
            "supported; wanted 0 or all of them"
        )
    return window if first <= 0 else None


def _uniform(config: Mapping[str, Any], kinds: set[str], where: str) -> None:
    if len(kinds) > 1:
        raise CheckpointError(
            f"{where}: layer_types is {shown(config['layer_types'])}; wanted the same for all layers"
        )
