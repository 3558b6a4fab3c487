"""Writes the heads that the host computes itself: from a reading to heads.safetensors, in float32."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from safetensors.torch import save

from ..runtime.bundle.heads import HEADS, head_shapes
from ..runtime.errors import CheckpointError
from .family import Reading


def write_heads(reading: Reading, folder: Path) -> str | None:
    """Write the heads of ``reading`` to ``folder`` and return the file's name, or None where the model has no head."""
    tensors = load_heads(reading)
    if not tensors:
        return None
    (folder / HEADS).write_bytes(save(tensors))  # ``save_file`` hides a full disk in an error of its own
    return HEADS


def load_heads(reading: Reading) -> dict[str, torch.Tensor]:
    """Return every head that the program has, float32; CheckpointError where one is missing, misshapen or not
    finite."""
    tensors = {}
    for name, wanted in head_shapes(reading.program).items():
        if name not in reading.heads:
            raise CheckpointError(
                f"the {reading.program.family} checkpoint has no {name}, and its config says that it has one"
            )
        tensor = reading.heads[name]().float().contiguous()
        found = tuple(tensor.shape)
        if len(found) != len(wanted) or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
            size = "×".join("?" if n is None else str(n) for n in wanted)
            raise CheckpointError(
                f"{name} is {'×'.join(map(str, found))}, wanted {size}; config and weights do not fit"
            )
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name} holds NaN or infinite values; export a checkpoint from before training diverged"
            )
        tensors[name] = tensor
    return tensors


def count_heads(reading: Reading) -> int:
    """Return the number of parameters of the heads."""
    return sum(prod(tensor.shape) for tensor in load_heads(reading).values())
