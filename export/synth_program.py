"""The program of a shape without its weights: what a model would compute, before there is one.

The families read a checkpoint whose tensors have a shape and no numbers, so the program is that of a checkpoint which
``synth`` writes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..runtime.model.program import Program
from .checkpoint import Checkpoint
from .families import read_checkpoint
from .synth import FORMATS
from .synth_shapes import Shape
from .synth_weights import SynthWeights

_NAMES = {torch.float16: "F16", torch.float32: "F32"}


class _Numberless:
    """A file of weights (``WeightFile``) of tensors without numbers: two are the same where they are one object."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.names = frozenset(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return _NAMES[self._tensors[name].dtype]

    def read(self, name: str) -> torch.Tensor:
        return self.first_row(name)

    def first_row(self, name: str) -> torch.Tensor:
        """What tells it from every other one."""
        return torch.tensor([id(self._tensors[name])])

    def storage(self, name: str) -> object:
        return id(self._tensors[name])


def program_of_shape(shape: Shape, lora_rank: int = 0) -> Program:
    """Return the program of a checkpoint of ``shape``; CheckpointError where no family reads such a shape."""
    kind = FORMATS.get(shape.family, SynthWeights)
    with torch.device("meta"):
        weights = kind(shape, None, torch.float16, lora_rank)
        tensors = dict(weights.tensors())
    file = _Numberless(tensors)
    training = weights.training_config() if shape.family == "mor" else None
    checkpoint = Checkpoint(
        Path(f"the {shape.family} shape"), weights.config(), training, None, dict.fromkeys(tensors, file)
    )
    return read_checkpoint(checkpoint).program
