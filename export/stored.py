"""From canonical tensors to stored ones: stacked as the program's weights say, and quantized.

Parts of a matrix are one under the other (one engine call for q, k and v), and codes do not change by that.
``write_weights`` streams them into one safetensors file, one tensor in memory at a time, and of a large one that the
checkpoint has as it is (an embedding, a head) some rows; every target takes its numbers from that file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch

from ..quant.pack import quantize
from ..quant.palette import palettize
from ..quant.recipe import Recipe, StorageFormat
from ..runtime.errors import CheckpointError
from ..runtime.model.codec import F16, F32, U8, Grouped, Palette, code_shape, rows_of_table
from ..runtime.model.weights import Tensor as StoredTensor
from ..runtime.model.weights import tensors
from .family import InPieces, Reading
from .weights import WeightsWriter

log = logging.getLogger(__name__)


Coded = Grouped | Palette
"""A matrix as codes with scales, or as indices into tables."""
Fitted = Mapping[str, Coded | F32]
"""What is fitted to a text: codes by matrix (``fitted.py``), and stored tensors that are floats, by their full names,
as training left them (``refine/``)."""
NEAREST: Fitted = {}
"""Nothing is fitted: every code is the nearest."""


def write_weights(reading: Reading, recipe: Recipe, path: Path, fitted: Fitted = NEAREST) -> None:
    """Quantize and write all stored tensors of ``reading`` to ``path``, or what ``fitted`` has of them.

    CheckpointError for values that are not finite, or too large for float16 where that is how they are stored.
    """
    # float32 first, then float16, then codes in multiples of 16 bytes: without gaps, which the format forbids,
    # each stays aligned. Codes of deltas, of any size, are last.
    each = [
        (name, tensor, recipe.storage(tensor.parts[0], tensor.kind))
        for name, tensor in tensors(reading.program.weights)
    ]
    stored = sorted(each, key=lambda e: (e[2].is_float or e[1].kind != "delta", e[2].bits), reverse=True)
    with WeightsWriter(path, 2 * len(stored)) as writer:
        for name, tensor, storage in stored:
            if storage.is_float:
                trained = fitted.get(name)
                found = (
                    iter((torch.from_numpy(np.array(trained)),))
                    if isinstance(trained, np.ndarray)
                    else pieces(reading, tensor)
                )
                if storage.bits == 16:
                    found = (_half(piece, name) for piece in found)
                writer.stream(name, (piece.numpy() for piece in found))
                continue
            base = name.removesuffix(".weight")
            made = fitted.get(base)
            if not isinstance(made, Coded):
                made = (
                    _palettized(reading, name, tensor)
                    if storage.palette
                    else _quantized(reading, tensor, storage)
                )
            for side, array in sides(made).items():
                writer.add(f"{base}.{side}", array)
            log.debug("quantized %s", name)


def sides(made: Coded) -> dict[str, U8 | F16]:
    """Return the arrays that are stored of a matrix by what follows its name, float16 first: so each stays aligned."""
    if isinstance(made, Palette):
        return {"tables": made.tables, "indices": made.indices}
    return {"scales": made.scales, "codes": made.codes}


def _whole(reading: Reading, tensor: StoredTensor) -> torch.Tensor:
    """Return the float32 numbers of ``tensor``, its parts one under the other, and so those of each depth."""
    loaded = [reading.tensors[part]() for part in tensor.parts]
    value = torch.cat(loaded, dim=-2 if tensor.kind == "matrix" else -1) if len(loaded) > 1 else loaded[0]
    return value.reshape(tensor.shape)


def pieces(reading: Reading, tensor: StoredTensor) -> Iterator[torch.Tensor]:
    """Yield ``_whole`` some rows at a time, if its loader can."""
    load = reading.tensors[tensor.parts[0]]
    if len(tensor.parts) > 1 or not isinstance(load, InPieces):
        yield _whole(reading, tensor)
    else:
        yield from (piece.reshape(-1, *tensor.shape[1:]) for piece in load.pieces())


def _palettized(reading: Reading, name: str, tensor: StoredTensor) -> Palette:
    value = _whole(reading, tensor)
    _half(value, name)
    return palettize(
        value, rows_of_table(reading.program.matrix(name.removesuffix(".weight")).parts.values())
    )


def _quantized(reading: Reading, tensor: StoredTensor, storage: StorageFormat) -> Grouped:
    """Return the nearest codes of ``tensor`` [N, K], or of all rows of a delta; its pieces come and go, so that
    only these stay in memory."""
    *heights, columns = tensor.shape
    shape = code_shape(prod(heights), columns, storage.group_size, storage.bits)
    codes, scales, first = np.empty(shape, np.uint8), np.empty(shape[:2], np.float16), 0
    for piece in pieces(reading, tensor):
        made = quantize(piece.reshape(-1, columns), storage.bits, storage.group_size)
        rows = slice(first, first := first + len(made.codes))
        codes[rows], scales[rows] = made.codes, made.scales
    return Grouped(codes, scales, storage.bits, columns)


def _half(value: torch.Tensor, name: str) -> torch.Tensor:
    half = value.half()
    if not bool(half.isfinite().all()):
        raise CheckpointError(
            f"{name} has values up to {float(value.abs().max()):.2g}, and is stored as float16; use --quant none"
        )
    return half
