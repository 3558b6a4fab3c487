"""A PEFT LoRA adapter's folder: adapter_config.json, and A and B of the matrices that it changes.

Its tensors join those of the checkpoint that it was trained on, under the names that PEFT gives them in the whole
model; what its settings mean is ``families/lora_scale.py``'s business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError
from .situations import ADAPTER_WEIGHTS, what_folder
from .weight_file import WeightFile
from .weight_files import read_json, weight_files

ADAPTER_CONFIG = "adapter_config.json"
_PAIR = re.compile(r".+\.lora_[AB](\.default)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: its settings, and the file of each of its tensors."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, WeightFile]


def open_adapter(folder: Path) -> Adapter:
    """Return the adapter of a folder; CheckpointError for a missing or damaged part, or a tensor that is no LoRA's A
    or B."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has no {ADAPTER_CONFIG}; wanted the folder that PEFT's save_pretrained wrote"
        )
    config = read_json(folder / ADAPTER_CONFIG)
    if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        raise CheckpointError(
            what_folder(
                folder, f"has no {ADAPTER_WEIGHTS[0]}; wanted the folder that PEFT's save_pretrained wrote"
            )
        )
    files = dict(weight_files(folder, ADAPTER_WEIGHTS))
    if strange := min((name for name in files if not _PAIR.fullmatch(name)), default=None):
        raise CheckpointError(
            f"{folder}: {strange} is no A or B of a LoRA on a linear layer, which is all that is read; merge the "
            "adapter into its model (merge_and_unload)"
        )
    if not files:
        raise CheckpointError(f"{folder} has an adapter without tensors; save it again")
    return Adapter(folder, config, files)
