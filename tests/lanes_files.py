"""What a file of the lane engine is written from, and what one holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from model_run import random_tensors

from edgeloop.quant.pack import quantize
from edgeloop.quant.recipe import INT8, Recipe
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.weights import tensors

Tensors = dict[str, np.ndarray[Any, Any]]
QUANTS = ("none", "int8", "int8-channel", "int4", "int4, deltas int8")


def stored(program: Program, quant: str, group: int = 32) -> tuple[Tensors, int]:
    """Random tensors of ``program`` as a recipe stores them, and the group size."""
    preset, _, deltas = quant.partition(", deltas ")
    recipe = Recipe.named(preset, group)
    if deltas:
        recipe = replace(recipe, deltas=INT8)
    found: Tensors = {}
    random = random_tensors(program.weights)
    for name, tensor in tensors(program.weights):
        storage, value = recipe.storage(tensor.parts[0], tensor.kind), random[name]
        if storage.is_float:
            found[name] = value.astype(np.float32 if storage.bits == 32 else np.float16)
        else:
            rows = torch.from_numpy(value).reshape(-1, value.shape[-1])
            packed = quantize(rows, storage.bits, storage.group_size)
            base = name.removesuffix(".weight")
            found |= {f"{base}.codes": packed.codes, f"{base}.scales": packed.scales}
    return found, recipe.group_size


def held(bundle: Bundle) -> Tensors:
    """The tensors that the lane engine's file of ``bundle`` has, by name."""
    lanes = LanesFile(bundle.path(bundle.manifest.targets["native"].weights), bundle.program)
    return {name: np.concatenate([*pieces]) for name, pieces in lanes.tensors()}
