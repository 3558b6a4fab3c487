"""Which layers of a model attend to the last tokens only, as its config.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from .config_values import size

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(config: Mapping[str, Any], layers: int, otherwise: Sequence[str], where: str) -> list[str]:
    """Return the kind of each layer, full_attention or sliding_attention: ``layer_types``, or ``otherwise`` where there
    are none."""
    types = config.get("layer_types")
    if types is None:
        return list(otherwise)
    if not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= {FULL, SLIDING}:
        raise CheckpointError(
            f"{where}: layer_types is {shown(types)}; wanted {FULL} or {SLIDING} for each of {layers} layers"
        )
    return [str(kind) for kind in types]


def layer_windows(
    config: Mapping[str, Any], kinds: Sequence[str], where: str, default: int
) -> list[int | None]:
    """Return the window of each layer of ``kinds`` in tokens, the newest included; None: it sees the whole context.

    ``default`` is transformers' sliding_window of a config that has no such key.
    """
    window = size(config, "sliding_window", where, default) if SLIDING in kinds else None
    return [window if kind == SLIDING else None for kind in kinds]
