"""Recursive checkpoints of the Mixture-of-Recursions and Relaxed Recursive Transformers authors' code.

The recursion is described in the training config, conf.yaml; config.json is a plain Llama config, and the
weights are written out as if unrolled, tied tensors aliased. Token routing (``mor.enable``) is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import flag, read_llama_config, shown, size
from .llama_layers import read_layers
from .llama_ties import LlamaNames, Run, plain
from .lora_scale import training_scale

logger = logging.getLogger(__name__)

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
}
SUSPECT = re.compile(r"loop|recur|shar|depth|exit|(^|_)mor(_|$)|router|dora|adapter")


class MorFamily:
    """A conf.yaml with ``recursive.enable: true``."""

    name = "mor"

    def matches(self, checkpoint: Checkpoint) -> bool:
        recursive = (checkpoint.training_config or {}).get("recursive")
        return isinstance(recursive, dict) and bool(recursive.get("enable"))

    def read(self, checkpoint: Checkpoint) -> Reading:
        where = str(checkpoint.folder / "conf.yaml")
        training = checkpoint.training_config or {}
        if (kind := checkpoint.config.get("model_type")) != "llama":
            raise CheckpointError(f"{checkpoint.folder}: a recursive model_type {kind!r}; llama is supported")
        _refuse(training, where)
        config = read_llama_config(checkpoint, ("kv_sharing",))
        names = LlamaNames(checkpoint)
        recursive = training["recursive"]
        plan = _plan(recursive, names, config.layers, where)
        scale = None
        relaxation = _section(training, "relaxation", where)
        if flag(relaxation, "enable", f"{where}: relaxation", False):
            scale = training_scale(checkpoint, _section(relaxation, "lora", where, "relaxation."))
        if _shares_kv(checkpoint, training, where):
            logger.warning(
                "kv_sharing is enabled in %s: read as per-depth KV, which is what the authors' forward computes "
                "without a cache; their cached forward, where depths share K and V, gives other logits",
                checkpoint.folder,
            )
        return read_layers(names, config, plan, self.name, scale=scale)


def _plan(recursive: Mapping[str, Any], names: LlamaNames, declared: int, where: str) -> list[Run]:
    """What conf.yaml says is shared; that it is, ``read_layers`` checks."""
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
        middle = [Run(applied, per_repeat)]
    else:
        starts = range(edge, edge + shared * repeats, repeats)
        middle = [Run((tuple(range(at, at + repeats)),), per_repeat) for at in starts]
    return [plain((0,)), *middle, plain((names.layers - 1,))] if edge else middle


def _refuse(training: Mapping[str, Any], where: str) -> None:
    """CheckpointError for each setting that changes the computation and is not read."""
    for key, value in training.items():
        off = not value or (isinstance(value, dict) and value.get("enable") is False)
        if key not in SECTIONS and SUSPECT.search(str(key).lower()) and not off:
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, which is not understood and may change the model"
            )
    _closed(_section(training, "recursive", where), KEYS["recursive"], f"{where}: recursive")
    if _enabled(training, "mor", where):
        raise CheckpointError(
            f"{where}: mor.enable is true: routed tokens are not supported yet; wanted a recursive checkpoint "
            "without routing (mor.enable: false)"
        )
    if not _enabled(training, "relaxation", where):
        return
    relaxation = _section(training, "relaxation", where)
    _closed(relaxation, KEYS["relaxation"], f"{where}: relaxation")
    if relaxation.get("method") != "lora":
        raise CheckpointError(
            f"{where}: relaxation.method is {relaxation.get('method')!r}; lora is supported"
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
    """The authors write kv_sharing into config.json too, as a flag or as conf.yaml's section."""
    copy = checkpoint.config.get("kv_sharing")
    return _enabled(training, "kv_sharing", where) or bool(
        copy.get("enable", True) if isinstance(copy, dict) else copy
    )
