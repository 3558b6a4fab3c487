"""conf.yaml of the Mixture-of-Recursions code: the sections and keys that are read, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from .config_keys import TRAINING, warn_of
from .config_values import flag

SECTIONS = ("recursive", "kv_sharing", "relaxation", "mor")
KEYS = {
    "recursive": ("enable", "base_depth", "num_recursion", "sharing", "ln_share", "initialization"),
    "relaxation": ("enable", "skip_first_loop", "method", "lora", "prompt", "recursion_encoding"),
    "relaxation.prompt": ("len",),
    "relaxation.lora": (
        "r",
        "alpha",
        "dropout",
        "target_modules",
        "svd_init",
        "rank_pattern",
        "alpha_pattern",
    ),
    "kv_sharing": ("enable", "base_depth", "num_recursion", "sharing", "update_cache"),
    "mor": (
        "enable",
        "type",
        "capacity",
        "rand_router",
        "router_type",
        "z_loss",
        "z_coeff",
        "temp",
        "expert",
        "token",
    ),
    "mor.expert": ("cap_warmup_step", "router_func", "alpha", "sampling", "include_first", "coeff", "gating"),
    "mor.token": ("bal_warmup_step", "router_func", "alpha", "balancing", "coeff", "u", "gating"),
}
SUSPECT = re.compile(
    r"loop|recur|shar|depth|exit|(^|_)mor(_|$)|router|dora|adapter|qk|rope|rotary|alibi|window|softcap|expert|moe"
)
METHODS: dict[str, str | None] = {
    "lora": "lora",
    "dora": "lora",
    "adaption_prompt": "prompt",
    "recursion_encoding": None,
}
"""The ways to let recursions differ (``relaxation.method``), and the section that has the settings of each."""

PLAIN_ONLY = ("adaption_prompt", "recursion_encoding")
"""Those that the authors' code has for models without a router only."""


def refuse(training: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for a setting that changes the computation and is not read; warn of others not known."""
    strange = []
    for key, value in training.items():
        off = not value or (isinstance(value, dict) and value.get("enable") is False)
        if key not in SECTIONS and SUSPECT.search(str(key).lower()) and not off:
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, which is not understood and may change the model"
            )
        if key not in SECTIONS and key not in TRAINING and not off:
            strange.append(str(key))
    warn_of(strange, where)
    _closed(section(training, "recursive", where), KEYS["recursive"], f"{where}: recursive")
    if enabled(training, "mor", where):
        mor = section(training, "mor", where)
        _closed(mor, KEYS["mor"], f"{where}: mor")
        if (kind := mor.get("type")) not in ("expert", "token"):
            raise CheckpointError(f"{where}: mor.type is {shown(kind)}; wanted expert or token")
        _closed(section(mor, kind, where, "mor."), KEYS[f"mor.{kind}"], f"{where}: mor.{kind}")
    if not enabled(training, "relaxation", where):
        return
    relaxation = section(training, "relaxation", where)
    _closed(relaxation, KEYS["relaxation"], f"{where}: relaxation")
    method = relaxation.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise CheckpointError(
            f"{where}: relaxation.method is {shown(method)}; wanted {', '.join(METHODS)}, or enable: false where the "
            "model was trained without"
        )
    if method in PLAIN_ONLY and enabled(training, "mor", where):
        raise CheckpointError(
            f"{where}: relaxation.method is {method} with mor enabled; wanted lora or dora where tokens are routed"
        )
    if (own := METHODS[method]) is not None:
        _closed(
            section(relaxation, own, where, "relaxation."),
            KEYS[f"relaxation.{own}"],
            f"{where}: relaxation.{own}",
        )


def _closed(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    if strange := min((str(key) for key in section if key not in known), default=None):
        raise CheckpointError(f"{where}.{strange} is not understood; known: {', '.join(known)}")


def section(table: Mapping[str, Any], key: str, where: str, parent: str = "") -> Mapping[str, Any]:
    """Return a part of the file, empty where it is not there; CheckpointError where it is no mapping."""
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {parent}{key} is {shown(value)}; wanted a mapping")
    return value


def enabled(training: Mapping[str, Any], key: str, where: str) -> bool:
    """Return whether the section ``key`` is enabled."""
    return flag(section(training, key, where), "enable", f"{where}: {key}", False)


def shares_kv(checkpoint: Checkpoint, training: Mapping[str, Any], where: str) -> bool:
    """Return whether depths share K/V.

    The authors write kv_sharing into config.json too, as a flag or as conf.yaml's section. CheckpointError for settings
    that are not those of the recursion, or not understood.
    """
    copy = checkpoint.config.get("kv_sharing")
    sections = {
        where: section(training, "kv_sharing", where),
        str(checkpoint.folder / "config.json"): {"enable": True, **copy}
        if isinstance(copy, dict)
        else {"enable": copy},
    }
    shares = False
    for place, settings in sections.items():
        label = f"{place}: kv_sharing"
        if not flag(settings, "enable", label, False):
            continue
        shares = True
        _closed(settings, KEYS["kv_sharing"], label)
        if flag(settings, "update_cache", label, False):
            raise CheckpointError(
                f"{label}.update_cache is true, which is not supported; wanted depths that only read the first one's"
            )
        for key in ("base_depth", "num_recursion", "sharing"):
            ours = training["recursive"].get(key)
            if settings.get(key) not in (None, ours):
                raise CheckpointError(
                    f"{label}.{key} is {shown(settings[key])}, and recursive.{key} is {shown(ours)}; wanted the same"
                )
    return shares
