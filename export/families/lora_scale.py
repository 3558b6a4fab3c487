"""The LoRA scale, which is in no state dict: from PEFT's adapter_config.json or MoR's conf.yaml."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..checkpoint.situations import ADAPTER_WEIGHTS
from .config_values import flag, number, size
from .lora import Scale

KNOWN = frozenset(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config exclude_modules inference_mode
    init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout megatron_config
    megatron_core peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules
    task_type use_rslora
    """.split()  # noqa: SIM905
)
"""Settings of PEFT that are read, or that say how the LoRA was made: the weights tell which matrices have one."""

INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
"""Initialisations of a LoRA that leave the model's weights as they are; the others (PiSSA, OLoRA, …) change them."""


def adapter_scale(checkpoint: Checkpoint, dora: bool = False) -> Scale | None:
    """Return PEFT's scale: alpha / r (rsLoRA: / √r), each overridden by alpha_pattern / rank_pattern.

    ``dora``: the caller reads DoRA, whose settings are those of LoRA.

    None without adapter_config.json; CheckpointError names a setting that is not plain LoRA.
    """
    adapter = checkpoint.adapter_config
    if adapter is None:
        return None
    where = str(checkpoint.adapter_folder / "adapter_config.json")
    if adapter.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {adapter['peft_type']!r}; LORA is supported")
    for key, value in adapter.items():
        if value and key not in KNOWN and not (dora and key == "use_dora"):
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, which is not supported; wanted plain LoRA"
            )
    if (initial := adapter.get("init_lora_weights")) not in INITIAL:
        raise CheckpointError(
            f"{where}: init_lora_weights is {shown(initial)}, which changes the model's own weights too; convert the "
            "adapter (save_pretrained with path_initial_model_for_weight_conversion), or merge it into the model"
        )
    if adapter.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias is {adapter['bias']!r}, which is not supported; wanted none")
    if not any(".lora_A." in name for name in checkpoint.names):
        beside = any((checkpoint.folder / name).is_file() for name in ADAPTER_WEIGHTS)
        remedy = (
            f"--adapter {checkpoint.folder} applies the adapter that is beside them; to leave it out, move it away"
            if beside
            else "save base and adapter together (the whole state_dict), or give the adapter's folder with --adapter"
        )
        raise CheckpointError(
            f"{checkpoint.folder} has adapter_config.json but no LoRA among its weights; {remedy}"
        )
    rooted = flag(adapter, "use_rslora", where, False)
    alphas, ranks = (_pattern(adapter, key, where) for key in ("alpha_pattern", "rank_pattern"))

    def scale(module: str, rank: int) -> float:
        declared = _lookup(ranks, module, size(adapter, "r", where, 8))
        if declared != rank:
            raise CheckpointError(f"{where}: rank of {module} is {declared:g}, its weights have {rank}")
        alpha = _lookup(alphas, module, number(adapter, "lora_alpha", where, 8))
        return alpha / (math.sqrt(rank) if rooted else rank)

    return scale


def training_scale(checkpoint: Checkpoint, lora: Mapping[str, Any], dora: bool = False) -> Scale:
    """Return MoR's scale: ``alpha_pattern`` itself where it is neither null nor 0, else alpha / rank.

    The authors' code sets alpha = rank · alpha_pattern for each module, after clipping the rank.
    adapter_config.json beside it wins, as it records what PEFT was given.
    """
    if (recorded := adapter_scale(checkpoint, dora)) is not None:
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
