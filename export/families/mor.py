"""Recursive checkpoints of the Mixture-of-Recursions and Relaxed Recursive Transformers authors' code.

The recursion is described in the training config, conf.yaml; config.json is a plain Llama config, and the
weights are written out as if unrolled, tied tensors aliased. Where tokens are routed (``mor.enable``), the
layers of a recursion are inside blocks: ``mor_routing.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from msgspec import structs

from ...runtime.errors import CheckpointError
from ...runtime.model.transform import sharing_kv
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import TRAINING, warn_of
from .config_values import flag, size
from .llama_config import LlamaConfig, read_llama_config
from .llama_layers import Scale, read_layers
from .llama_names import LlamaNames
from .lora_scale import adapter_scale, training_scale
from .mor_routing import RoutedNames, read_routing, router_heads
from .ties import MAX_LAYERS, TiedRun, plain

SECTIONS = ("recursive", "kv_sharing", "relaxation", "mor")
KEYS = {
    "recursive": ("enable", "base_depth", "num_recursion", "sharing", "ln_share", "initialization"),
    "relaxation": ("enable", "skip_first_loop", "method", "lora", "prompt", "recursion_encoding"),
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


class MorFamily:
    """A conf.yaml with ``recursive.enable: true``."""

    name = "mor"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Does the training config say that the model is recursive?"""
        recursive = (checkpoint.training_config or {}).get("recursive")
        return isinstance(recursive, dict) and bool(recursive.get("enable"))

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where = str(checkpoint.folder / "conf.yaml")
        training = checkpoint.training_config or {}
        if (kind := checkpoint.config.get("model_type")) != "llama":
            raise CheckpointError(f"{checkpoint.folder}: a recursive model_type {kind!r}; llama is supported")
        _refuse(training, where)
        config = read_llama_config(checkpoint, ("kv_sharing",))
        scale = adapter_scale(checkpoint)
        relaxation = _section(training, "relaxation", where)
        if flag(relaxation, "enable", f"{where}: relaxation", False):
            scale = training_scale(checkpoint, _section(relaxation, "lora", where, "relaxation."))
        shares = _shares_kv(checkpoint, training, where)
        if _enabled(training, "mor", where):
            return self._routed(checkpoint, config, training, scale, shares, where)
        names = LlamaNames(checkpoint)
        plan = _plan(training["recursive"], names, config.layers, where)
        reading = read_layers(names, config, plan, self.name, scale=scale)
        if not shares:
            return reading
        if reading.program.depths < 2:
            raise CheckpointError(
                f"{where}: kv_sharing is enabled, and recursive.sharing repeats layer by layer: there is no loop "
                "whose depths could share; wanted cycle or middle_cycle"
            )
        return replace(reading, program=sharing_kv(reading.program, True))

    def _routed(
        self,
        checkpoint: Checkpoint,
        config: LlamaConfig,
        training: Mapping[str, Any],
        scale: Scale | None,
        shares: bool,
        where: str,
    ) -> Reading:
        recursive, mor = training["recursive"], training["mor"]
        sharing = recursive.get("sharing")
        if sharing not in ("cycle", "middle_cycle"):
            raise CheckpointError(
                f"{where}: recursive.sharing is {sharing!r} with mor enabled; wanted cycle or middle_cycle"
            )
        repeats = size(recursive, "num_recursion", f"{where}: recursive")
        if repeats > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: recursive.num_recursion is {repeats}; wanted {MAX_LAYERS} at most"
            )
        routing = read_routing(mor, repeats, f"{where}: mor")
        names = RoutedNames(checkpoint, routing.kind, 1 if sharing == "middle_cycle" else 0, repeats)
        plan = _plan(recursive, names, config.layers, where)
        if routing.kind == "expert":
            # As first released, the authors' code makes attention anew for each recursion; commit 82c97f2 tied it.
            plan = [replace(run, own_attention=len(run.applied[0]) > 1) for run in plan]
        balancing = _section(mor, routing.kind, where, "mor.").get("balancing")
        heads = router_heads(names, routing, config.hidden_size, balancing == "loss_free")
        reading = read_layers(names, config, plan, self.name, scale=scale, read=heads.used)
        if shares and reading.program.own_matrices:
            raise CheckpointError(
                f"{where}: kv_sharing is enabled, and attention has matrices for each recursion; wanted attention that "
                "all of them share, as in the authors' code since commit 82c97f2"
            )
        program = structs.replace(reading.program, routing=routing)
        if shares:
            program = sharing_kv(program, True)
        return replace(reading, program=program, heads=heads.tensors)


def _plan(recursive: Mapping[str, Any], names: LlamaNames, declared: int, where: str) -> list[TiedRun]:
    """Return the runs that conf.yaml declares as shared; ``read_layers`` checks that they are."""
    label = f"{where}: recursive"
    repeats = size(recursive, "num_recursion", label)
    sharing = recursive.get("sharing")
    if sharing not in ("cycle", "sequence", "middle_cycle", "middle_sequence"):
        raise CheckpointError(
            f"{label}.sharing is {sharing!r}; wanted cycle, sequence, middle_cycle or middle_sequence"
        )
    if repeats < 2:
        raise CheckpointError(f"{label}.num_recursion is {repeats}: nothing is repeated; wanted 2 or more")
    edge = 1 if sharing.startswith("middle_") else 0
    shared, rest = divmod(names.layers - 2 * edge, repeats)
    # Where L is not divisible the authors drop layers, but config.json may keep the number from before.
    kept = (declared - 2 * edge) // repeats * repeats + 2 * edge
    if rest or shared < 1 or names.layers not in (declared, kept):
        raise CheckpointError(
            f"{label}: {sharing} × {repeats} of {declared} layers keeps {kept}, but the weights have "
            f"{names.layers} layers; conf.yaml is not this checkpoint's"
        )
    per_repeat = not flag(recursive, "ln_share", label, True)
    if sharing.endswith("cycle"):
        applied = tuple(tuple(edge + j + d * shared for d in range(repeats)) for j in range(shared))
        middle = [TiedRun(applied, per_repeat)]
    else:
        starts = range(edge, edge + shared * repeats, repeats)
        middle = [TiedRun((tuple(range(at, at + repeats)),), per_repeat) for at in starts]
    return [plain((0,)), *middle, plain((names.layers - 1,))] if edge else middle


def _refuse(training: Mapping[str, Any], where: str) -> None:
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
    _closed(_section(training, "recursive", where), KEYS["recursive"], f"{where}: recursive")
    if _enabled(training, "mor", where):
        mor = _section(training, "mor", where)
        _closed(mor, KEYS["mor"], f"{where}: mor")
        if (kind := mor.get("type")) not in ("expert", "token"):
            raise CheckpointError(f"{where}: mor.type is {shown(kind)}; wanted expert or token")
        _closed(_section(mor, kind, where, "mor."), KEYS[f"mor.{kind}"], f"{where}: mor.{kind}")
    if not _enabled(training, "relaxation", where):
        return
    relaxation = _section(training, "relaxation", where)
    _closed(relaxation, KEYS["relaxation"], f"{where}: relaxation")
    if relaxation.get("method") != "lora":
        raise CheckpointError(
            f"{where}: relaxation.method is {shown(relaxation.get('method'))}; wanted lora, or enable: false where the "
            "model was trained without"
        )
    _closed(
        _section(relaxation, "lora", where, "relaxation."),
        KEYS["relaxation.lora"],
        f"{where}: relaxation.lora",
    )


def _closed(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    if strange := min((str(key) for key in section if key not in known), default=None):
        raise CheckpointError(f"{where}.{strange} is not understood; known: {', '.join(known)}")


def _section(table: Mapping[str, Any], key: str, where: str, parent: str = "") -> Mapping[str, Any]:
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {parent}{key} is {shown(value)}; wanted a mapping")
    return value


def _enabled(training: Mapping[str, Any], key: str, where: str) -> bool:
    return flag(_section(training, key, where), "enable", f"{where}: {key}", False)


def _shares_kv(checkpoint: Checkpoint, training: Mapping[str, Any], where: str) -> bool:
    """Do depths share K and V? The authors write kv_sharing into config.json too, as a flag or as conf.yaml's section.

    CheckpointError for settings that are not those of the recursion, or not understood.
    """
    copy = checkpoint.config.get("kv_sharing")
    sections = {
        where: _section(training, "kv_sharing", where),
        str(checkpoint.folder / "config.json"): {"enable": True, **copy}
        if isinstance(copy, dict)
        else {"enable": copy},
    }
    shares = False
    for place, section in sections.items():
        label = f"{place}: kv_sharing"
        if not flag(section, "enable", label, False):
            continue
        shares = True
        _closed(section, KEYS["kv_sharing"], label)
        if flag(section, "update_cache", label, False):
            raise CheckpointError(
                f"{label}.update_cache is true, which is not supported; wanted depths that only read the first one's"
            )
        for key in ("base_depth", "num_recursion", "sharing"):
            ours = training["recursive"].get(key)
            if section.get(key) not in (None, ours):
                raise CheckpointError(
                    f"{label}.{key} is {shown(section[key])}, and recursive.{key} is {shown(ours)}; wanted the same"
                )
    return shares
