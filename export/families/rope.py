"""The rotary embeddings of a config.json: their base, the share of a head that is rotated, and the scaling rule.

transformers 4 has ``rope_theta`` and ``rope_scaling``, transformers 5 ``rope_parameters``; files with both must agree.
The rules are transformers' (modeling_rope_utils.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.rotation import Interpolated, Llama3, Rotation, Scaling, Yarn
from ...runtime.wording import shown
from .config_values import number, size

PLAIN: Mapping[str, Sequence[str]] = {"rope_theta": ("rope_theta",)}
"""The base, and the key of its own that says the same."""

LENGTH = "original_max_position_embeddings"
RULES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", LENGTH),
    "yarn": (
        "factor", LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
"""The rules that are computed, and the numbers of each."""


def rotation(
    config: Mapping[str, Any],
    where: str,
    head_dim: int,
    own: Mapping[str, Sequence[str]] = PLAIN,
    theta: float = 10000.0,
    part: float = 1.0,
) -> Rotation:
    """Return the rotation of heads of ``head_dim``.

    ``own``: for each number that a config of the family may have outside of the tables, its keys there. ``theta`` and
    ``part`` are those of a config that names none. CheckpointError where two places differ, and for a rule or a number
    that is not computed.
    """
    said = _said(config, where, own)
    rule = str(_settled(said.pop("rope_type", {}), where) or "default")
    for name, places in said.items():
        if name not in RULES[rule] and name not in own:
            place, value = next(iter(places.items()))
            raise CheckpointError(
                f"{where}: {place} is {shown(value)}, which rope_type {rule} does not have; wanted "
                f"{', '.join(RULES[rule]) or 'plain rotary embeddings'}"
            )
    found = {name: _settled(places, where) for name, places in said.items()}
    share = found.get("partial_rotary_factor", part)
    dims = int(head_dim * share)
    if not 0 < dims <= head_dim or dims % 2:
        raise CheckpointError(
            f"{where}: a share of {share} of heads of {head_dim} rotates {dims} dims; wanted an even number, at most "
            f"{head_dim}"
        )
    return Rotation(dims, found.get("rope_theta", theta), _scaling(rule, found, config, where))


def _said(
    config: Mapping[str, Any], where: str, own: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return what is said of each number: by the place that says it. Nulls say nothing."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in own.items():
        for key in keys:
            if config.get(key) is not None:
                found.setdefault(name, {})[key] = number(config, key, where)
    for key in ("rope_parameters", "rope_scaling"):
        table = config.get(key)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise CheckpointError(f"{where}: {key} is {shown(table)}; wanted an object or null")
        for name, value in table.items():
            if value is None or (name == "partial_rotary_factor" and name not in own and value == 1.0):
                continue
            place = f"{key}.{name}"
            if name in ("rope_type", "type"):
                if value not in RULES:
                    raise CheckpointError(
                        f"{where}: {place} is {shown(value)}, a rule that is not supported; wanted {', '.join(RULES)}"
                    )
                found.setdefault("rope_type", {})[place] = value
            elif name == "truncate":
                if value is not True:
                    raise CheckpointError(f"{where}: {place} is {shown(value)}; wanted true, or no such key")
            else:
                found.setdefault(name, {})[place] = (
                    size(table, name, f"{where}: {key}")
                    if name == LENGTH
                    else number(table, name, f"{where}: {key}")
                )
    return found


def _settled(places: Mapping[str, Any], where: str) -> Any:
    """Return the one value that all ``places`` give; None where there is none."""
    values = list(places.values())
    if any(value != values[0] for value in values):
        raise CheckpointError(
            f"{where}: {' and '.join(places)} differ: {', '.join(shown(value) for value in values)}"
        )
    return values[0] if values else None


def _scaling(rule: str, found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Scaling | None:
    if rule == "default":
        return None
    wanted = [name for name in RULES[rule] if name.endswith("factor") and not name.startswith("attention")]
    if missing := next((name for name in wanted if name not in found), None):
        raise CheckpointError(f"{where}: rope_type is {rule!r}, and there is no {missing} beside it")
    factor = found["factor"]
    if rule == "linear":
        return Interpolated(factor)
    length = found.get(LENGTH) or size(config, "max_position_embeddings", where, 2048)
    if rule == "llama3":
        return Llama3(factor, found["low_freq_factor"], found["high_freq_factor"], length)
    return Yarn(
        factor, length, _amplitude(factor, found), found.get("beta_fast", 32.0), found.get("beta_slow", 1.0)
    )


def _amplitude(factor: float, found: Mapping[str, Any]) -> float:
    """Return what YaRN multiplies cos and sin by, where no ``attention_factor`` says it."""
    if (said := found.get("attention_factor")) is not None:
        return float(said)

    def grown(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    if "mscale" in found and "mscale_all_dim" in found:
        return grown(found["mscale"]) / grown(found["mscale_all_dim"])
    return grown(1.0)
