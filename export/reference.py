"""The reference engine over an export's stored weights: every artifact is compared with it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from ..quant.recipe import Recipe
from ..runtime.engines.reference.engine import ReferenceBackend
from ..runtime.model.program import Program
from ..runtime.model.stored import Array


def reference_engine(program: Program, weights: Path, recipe: Recipe) -> ReferenceBackend:
    """Return the model of ``program`` with the weights that ``recipe`` made."""
    return ReferenceBackend(program, mapped(weights), recipe.group_sizes(program.weights))


def mapped(weights: Path) -> dict[str, Array]:
    """Return the tensors of a weights file, mapped rather than read."""
    return {name: tensor.numpy() for name, tensor in load_file(weights).items()}
