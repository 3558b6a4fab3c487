"""Reads a YAML config of a stranger, with limits before it is built: its size, its depth, and its aliases written
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...runtime.errors import CheckpointError
from ...runtime.wording import reason

MAX_BYTES = 256 << 10  # 2 s of PyYAML; a training config is a few kB
MAX_NODES = 20_000  # written out, aliases too


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping that ``text``, read from ``path``, holds; CheckpointError for anything else, and for a
    bomb."""
    if len(text) > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {len(text)} characters of YAML; a training config has {MAX_BYTES} at most: leave out what is "
            "no setting"
        )
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _written_out(node, {}) > MAX_NODES:
            raise CheckpointError(
                f"{path} has more than {MAX_NODES} values, aliases (*name) written out; leave out what is no setting"
            )
        value = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid YAML ({reason(error)})") from error
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a YAML {type(value).__name__}; wanted a mapping")
    return value


def _written_out(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return how many nodes ``node`` has, an alias counted as what it stands for; too many if it contains itself."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MAX_NODES + 1  # until it is known: only a node inside itself meets this
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_written_out(child, counted) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_written_out(child, counted) for pair in node.value for child in pair)
    counted[id(node)] = total
    return total
