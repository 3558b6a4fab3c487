"""From canonical tensors to stored ones: what is fused, in which order, and how it is quantized.

q, k and v become one matrix, gate and up another (one engine call each, and codes do not change by
stacking rows). Everything else keeps its canonical name. ``write_weights`` streams them into one
safetensors file, one tensor in memory at a time; every target takes its numbers from that file.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ..quant.pack import quantize
from ..quant.palette import palettize, table_rows
from ..quant.recipe import Recipe
from ..runtime.errors import CheckpointError
from ..runtime.spec import Spec
from ..runtime.weights import MATRICES, copies, layers, matrix_shapes, small_shapes
from .family import Reading
from .weights import WeightsWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A stored tensor ``name`` (without .weight/.codes/.scales for matrices) and what it is stacked from."""

    name: str
    parts: tuple[str, ...]


def stored_tensors(spec: Spec) -> list[Stored]:
    """Every stored tensor of a model: matrices, then norms and deltas, which are stored as they are."""
    tensors = [Stored("embed.weight", ("embed.weight",))]
    if not spec.tied_embedding:
        tensors.append(Stored("head.weight", ("head.weight",)))
    for prefix, _ in layers(spec):
        for matrix, parts in MATRICES.items():
            tensors.append(Stored(f"{prefix}.{matrix}.weight", tuple(f"{prefix}.{p}.weight" for p in parts)))
    return tensors + [Stored(name, (name,)) for name in small_shapes(spec)]


def count_parameters(spec: Spec, heads: int = 0) -> tuple[int, int]:
    """(parameters of the model, parameters of the same model with every applied layer stored).

    ``heads`` are the parameters of the heads that the host computes, which no target stores.
    """
    unique = unrolled = heads
    for name, shape in (matrix_shapes(spec) | small_shapes(spec)).items():
        unique += prod(shape)
        unrolled += prod(shape) * (_applied(spec, name, shape) if name.startswith("segments.") else 1)
    return unique, unrolled


def _applied(spec: Spec, name: str, shape: tuple[int, ...]) -> int:
    """How often a layer's tensor is used: once if it has something for each repeat."""
    segment = spec.segments[int(name.split(".")[1])]
    shared = len(shape) == (1 if "norm" in name else 2) and copies(segment, name.split(".")[-1]) == 1
    return segment.repeats if shared else 1


def write_weights(reading: Reading, recipe: Recipe, path: Path) -> None:
    """Quantize and write all stored tensors of ``reading`` to ``path``.

    CheckpointError for values that are not finite, or too large for float16 where that is how they are stored.
    """
    spec = reading.spec
    # float32 first, then float16, then codes in multiples of 16 bytes: without gaps, which the format forbids,
    # each stays aligned.
    matrices = matrix_shapes(spec)
    stored = sorted(stored_tensors(spec), key=lambda t: recipe.storage(t.parts[0]).bits, reverse=True)
    with WeightsWriter(path, 2 * len(stored)) as writer:
        for tensor in stored:
            storage = recipe.storage(tensor.parts[0])
            loaded = [reading.tensors[part]() for part in tensor.parts]
            value = torch.cat(loaded, dim=-2) if len(loaded) > 1 else loaded[0]
            if tensor.name.removesuffix(".weight") in matrices:
                value = value.flatten(0, -2)  # one matrix a repeat: one under the other
            if storage.is_float:
                writer.add(tensor.name, (value if storage.bits == 32 else _half(value, tensor.name)).numpy())
                continue
            base = tensor.name.removesuffix(".weight")
            if storage.palette:
                _half(value, tensor.name)
                palette = palettize(value, table_rows([len(part) for part in loaded]))
                writer.add(f"{base}.tables", palette.tables)
                writer.add(f"{base}.indices", palette.indices)
                log.debug("palettized %s", tensor.name)
                continue
            packed = quantize(value, storage.bits, recipe.group_size)
            writer.add(f"{base}.scales", packed.scales)
            writer.add(f"{base}.codes", packed.codes)
            log.debug("quantized %s", tensor.name)


def _half(value: torch.Tensor, name: str) -> torch.Tensor:
    half = value.half()
    if not bool(half.isfinite().all()):
        raise CheckpointError(
            f"{name} has values up to {float(value.abs().max()):.2g}, and is stored as float16; use --quant none"
        )
    return half
