"""The contract of a model family: recognise a checkpoint, say what it computes, name its tensors.

A family is one file in ``families/`` with one class, and one line in the table there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from ..runtime.model.program import Program
from .checkpoint import Checkpoint

Loader = Callable[[], torch.Tensor]


@runtime_checkable
class InPieces(Protocol):
    """A loader that can also give its tensor some rows at a time: an embedding may be larger than all layers
    together."""

    def __call__(self) -> torch.Tensor:
        """Return the whole float32 tensor."""

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield its rows in their order, each piece float32 and small."""


@dataclass(frozen=True)
class Reading:
    """A checkpoint in canonical terms.

    ``tensors`` maps each canonical name of ``program`` (see ``runtime.model.weights``) to a loader that returns the
    float32 tensor when called, so that one tensor at a time is in memory; ``heads`` does the same for those that
    the host computes itself. ``used`` are the checkpoint's own names that were consumed, ties included; what
    else it holds is reported as unused.
    """

    program: Program
    tensors: Mapping[str, Loader]
    used: frozenset[str]
    heads: Mapping[str, Loader] = field(default_factory=dict)


class Family(Protocol):
    """One model family."""

    name: str

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint is of this family, by its configs alone: no weights are read."""
        ...

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names any flag or tensor that is not understood."""
        ...
