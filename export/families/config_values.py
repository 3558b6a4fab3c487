"""Values of a config.json, each checked where it is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.ops import Function
from ...runtime.wording import shown

MAX_SIZE = 1 << 24  # of any one dimension; far above real models, far below what overflows a product
FUNCTIONS: dict[str, Function] = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip
"""The op's activation by transformers' name for it."""


def size(table: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """Return a positive integer; ``default`` where the key is absent or null. CheckpointError for anything else."""
    value = table.get(key)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"{where} has no {key}; wanted a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted a positive integer up to {MAX_SIZE}")
    return value


def number(table: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """Return a positive finite number; ``default`` where the key is absent or null. CheckpointError for anything
    else."""
    value = table.get(key)
    if value is None:
        value = default
    largest = sys.float_info.max  # an integer of JSON may be larger
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= largest:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted a positive number")
    return float(value)


def flag(table: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    """Return true or false; ``default`` where the key is absent or null. CheckpointError for anything else."""
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} is {shown(value)}; wanted true or false")
    return value


def activation(table: Mapping[str, Any], key: str, where: str, default: str = "gelu") -> Function:
    """Return the activation by transformers' name for it; ``default`` where the key is absent or null."""
    said = default if table.get(key) is None else table[key]
    if (function := FUNCTIONS.get(str(said))) is None:
        raise CheckpointError(f"{where}: {key} is {shown(said)}; wanted one of {', '.join(FUNCTIONS)}")
    return function


def token_ids(config: Mapping[str, Any], key: str, vocab: int, where: str) -> tuple[int, ...]:
    """Return the ids of bos or eos: none where the key is absent, one, or a list."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}; wanted token ids below vocab_size {vocab}"
            )
    return tuple(ids)
