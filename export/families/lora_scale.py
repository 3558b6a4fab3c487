"""The LoRA scale, which is in no state dict: from PEFT's adapter_config.json or MoR's conf.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from .config_keys import shown
from .llama_config import number, size
from .llama_layers import Scale

REFUSED = re.compile(
    "use_(dora|rslora|qalora)|fan_in_fan_out|modules_to_save|lora_bias|layer_replication|exclude_modules"
    "|trainable_token_indices|alora_invocation_tokens|target_parameters"
)
"""Settings of PEFT that change what a LoRA computes."""


def adapter_scale(checkpoint: Checkpoint) -> Scale | None:
    """PEFT's rule: alpha / r, each overridden by alpha_pattern / rank_pattern; None without adapter_config.json."""
    adapter = checkpoint.adapter_config
    if adapter is None:
        return None
    where = str(checkpoint.folder / "adapter_config.json")
    if adapter.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {adapter['peft_type']!r}; LORA is supported")
    for key, value in adapter.items():
        if value and REFUSED.fullmatch(key):
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, which is not supported; wanted plain LoRA"
            )
    if adapter.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias is {adapter['bias']!r}, which is not supported; wanted none")
    if not any(".lora_A." in name for name in checkpoint.names):
        raise CheckpointError(
            f"{checkpoint.folder} has adapter_config.json but no LoRA among its weights; save base and adapter "
            "together (the whole state_dict), or merge them"
        )
    alphas, ranks = (_pattern(adapter, key, where) for key in ("alpha_pattern", "rank_pattern"))

    def scale(module: str, rank: int) -> float:
        declared = _lookup(ranks, module, size(adapter, "r", where, 8))
        if declared != rank:
            raise CheckpointError(f"{where}: rank of {module} is {declared}, its weights have {rank}")
        return float(_lookup(alphas, module, number(adapter, "lora_alpha", where, 8))) / rank

    return scale


def training_scale(checkpoint: Checkpoint, lora: Mapping[str, Any]) -> Scale:
    """MoR's rule: ``alpha_pattern`` is the scale itself (their code sets alpha = rank · alpha_pattern for each
    module, after clipping the rank); where it is null or 0, the scale is alpha / rank.

    adapter_config.json beside it wins, as it records what PEFT was given.
    """
    if (recorded := adapter_scale(checkpoint)) is not None:
        return recorded
    where = f"{checkpoint.folder / 'conf.yaml'}: relaxation.lora"
    if lora.get("alpha_pattern"):
        whole = number(lora, "alpha_pattern", where)
        return lambda module, rank: whole
    alpha = number(lora, "alpha", where)
    return lambda module, rank: alpha / rank


def _pattern(adapter: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    table = adapter.get(key) or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"{where}: {key} is {shown(table)}; wanted an object")
    for name in table:
        # PEFT takes the keys as regular expressions; plain names are all that training code writes.
        if not re.fullmatch(r"[\w.]+", name):
            raise CheckpointError(
                f"{where}: {key} has the pattern {name!r}; plain module names are supported"
            )
        number(table, name, f"{where}: {key}")
    return table


def _lookup(table: Mapping[str, Any], module: str, default: float) -> float:
    full = f"base_model.model.{module}"
    value = next((v for key, v in table.items() if full == key or full.endswith(f".{key}")), default)
    return float(value)
