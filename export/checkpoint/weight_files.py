"""The files of a checkpoint folder: weights (safetensors or .bin, whole or sharded) and text configs.

Nothing in them is trusted: sizes come from the files that are really there, names stay in the folder, and a
``.bin``, which is a pickle, is checked before it is opened, so that no code in it is ever run (``torch_file.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.wording import reason
from .safetensors_file import SafetensorsFile
from .situations import WEIGHTS, what_file, what_folder
from .torch_file import TorchFile
from .weight_file import WeightFile
from .yaml_file import parse_yaml

MAX_TEXT_BYTES = 64 << 20  # a config or shard index; the largest in the wild are a few MB


def weight_files(folder: Path, names: Sequence[str] = WEIGHTS) -> Iterator[tuple[str, WeightFile]]:
    """Yield (tensor name, file) of every tensor in the first file of ``names`` that is there, whole or as shards."""
    for whole in names:
        kind = SafetensorsFile if whole.endswith(".safetensors") else TorchFile
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            file = kind(folder / whole)
            yield from ((name, file) for name in file.names)
            return
        if index.is_file():
            shards = _shard_names(index)
            opened = {shard: kind(folder / shard) for shard in sorted(set(shards.values()))}
            for name, shard in shards.items():
                if name not in opened[shard].names:
                    raise CheckpointError(
                        f"{folder / shard} has no tensor {name}, though {index.name} places it there; "
                        "download the checkpoint again"
                    )
                yield name, opened[shard]
            # What the index forgot is there all the same.
            for file in opened.values():
                yield from ((name, file) for name in file.names - shards.keys())
            return
    wanted = " or ".join(names)
    raise CheckpointError(
        what_folder(folder, f"has no weights: wanted {wanted}, whole or with its .index.json")
    )


def _shard_names(index: Path) -> dict[str, str]:
    """Return the shard's file name for each tensor name, each a plain name of a file in the folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; download it again")
    for shard in {str(value) for value in shards.values()}:
        # An index is data from elsewhere: it may not point out of the checkpoint's own folder.
        if any(c in shard for c in "/\\:\0") or shard in ("", ".", ".."):
            raise CheckpointError(f"{index} names the file {shard!r}; wanted a plain file name in the folder")
        if not (index.parent / shard).is_file():
            found = " (a link to a file that is not there)" if (index.parent / shard).is_symlink() else ""
            raise CheckpointError(
                f"{index.parent} lacks {shard}{found}, which {index.name} names; download it again"
            )
    return {str(name): str(shard) for name, shard in shards.items()}


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file; CheckpointError when it cannot be read or is something else."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; no config is larger than {MAX_TEXT_BYTES}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text ({reason(error)})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; CheckpointError when it is something else."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(what_file(path) or f"{path} is not valid JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; wanted an object")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the YAML mapping of a file; CheckpointError when it is something else."""
    return parse_yaml(read_text(path), path)
