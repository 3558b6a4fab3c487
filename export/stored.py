"""From canonical tensors to stored ones: stacked as the program's weights say, and quantized.

Parts of a matrix are one under the other (one engine call for q, k and v), and codes do not change by that.
``write_weights`` streams them into one safetensors file, one tensor in memory at a time; every target takes its
numbers from that file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ..quant.pack import quantize
from ..quant.palette import palettize, table_rows
from ..quant.recipe import Recipe
from ..runtime.errors import CheckpointError
from ..runtime.model.codec import Grouped
from ..runtime.model.weights import tensors
from .family import Reading
from .weights import WeightsWriter

log = logging.getLogger(__name__)


NEAREST: Mapping[str, Grouped] = {}
"""Nothing is fitted: every code is the nearest."""


def write_weights(
    reading: Reading, recipe: Recipe, path: Path, fitted: Mapping[str, Grouped] = NEAREST
) -> None:
    """Quantize and write all stored tensors of ``reading`` to ``path``, with the codes of ``fitted``
    (``fitted.py``, by matrix) where there are such.

    CheckpointError for values that are not finite, or too large for float16 where that is how they are stored.
    """
    # float32 first, then float16, then codes in multiples of 16 bytes: without gaps, which the format forbids,
    # each stays aligned.
    each = [
        (name, tensor, recipe.storage(tensor.parts[0], tensor.kind))
        for name, tensor in tensors(reading.program.weights)
    ]
    stored = sorted(each, key=lambda e: e[2].bits, reverse=True)
    with WeightsWriter(path, 2 * len(stored)) as writer:
        for name, tensor, storage in stored:
            loaded = [reading.tensors[part]() for part in tensor.parts]
            matrix = tensor.kind == "matrix"
            value = torch.cat(loaded, dim=-2 if matrix else -1) if len(loaded) > 1 else loaded[0]
            value = value.reshape(
                tensor.shape
            )  # one matrix a depth: one under the other, and so their biases
            if storage.is_float:
                writer.add(name, (value if storage.bits == 32 else _half(value, name)).numpy())
                continue
            base = name.removesuffix(".weight")
            if storage.palette:
                _half(value, name)
                palette = palettize(value, table_rows([len(part) for part in loaded]))
                writer.add(f"{base}.tables", palette.tables)
                writer.add(f"{base}.indices", palette.indices)
                log.debug("palettized %s", name)
                continue
            packed = fitted.get(base) or quantize(value, storage.bits, storage.group_size)
            writer.add(f"{base}.scales", packed.scales)
            writer.add(f"{base}.codes", packed.codes)
            log.debug("quantized %s", name)


def _half(value: torch.Tensor, name: str) -> torch.Tensor:
    half = value.half()
    if not bool(half.isfinite().all()):
        raise CheckpointError(
            f"{name} has values up to {float(value.abs().max()):.2g}, and is stored as float16; use --quant none"
        )
    return half
