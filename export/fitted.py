"""Codes fitted to what a model's matrices are given while it reads a text, at every depth.

The model reads the text with the reference engine, in windows, and for each matrix the sum of x xᵀ over its inputs is
kept: of a shared block over all depths, of the head over all read-outs. GPTQ (``quant/gptq.py``) rounds for that sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..quant.gptq import gptq
from ..quant.recipe import Recipe, StorageFormat
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.decode.windows import perplexity
from ..runtime.engines.backend import F32, I64
from ..runtime.engines.reference.engine import ReferenceBackend
from ..runtime.errors import UsageError
from ..runtime.model.codec import Grouped
from ..runtime.model.program import Program
from ..runtime.model.stored import Array, map_tensors
from ..runtime.model.weights import Matrix
from ..runtime.text.tokenizer import Tokenizer
from .family import Reading
from .stored import write_weights
from .target import Progress
from .text.vocabulary import Vocabulary

WINDOW, TOKENS = 512, 1 << 14
"""Tokens of a window, and of the text, at most: with 16384 the sums of 256 to 2560 columns are well filled."""


@dataclass
class Moments:
    """Σ x xᵀ [K, K] over the inputs of each matrix at all depths, by its name and the number of the copy."""

    program: Program
    sums: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __call__(self, name: str, first: int, x: F32) -> None:
        """Add the inputs x [n, K] of the matrix ``name`` from its row ``first`` on."""
        rows = torch.from_numpy(np.ascontiguousarray(x))
        key = name, first // self.program.matrix(name).rows
        if key in self.sums:
            self.sums[key].addmm_(rows.T, rows)
        else:
            self.sums[key] = rows.T @ rows


def check_fits(recipes: Mapping[str, Recipe]) -> None:
    """Raise UsageError where a target stores nothing that is fitted. ``recipes``: by the names of the targets."""
    for target, recipe in recipes.items():
        if not recipe.has_codes:
            raise UsageError(
                f"--calibrate fits codes with scales to a text, and target {target} has none: its matrices are "
                f"stored as {recipe.rest}; leave --calibrate away, or export that target by itself without it"
            )


def fit(
    reading: Reading,
    recipe: Recipe,
    vocabulary: Vocabulary | None,
    text: str,
    folder: Path,
    progress: Progress,
) -> dict[str, Grouped]:
    """Return codes for ``text`` of the matrices that ``recipe`` stores as such, by their names.

    ``folder`` has room for the model as float32 meanwhile. UsageError for a text that is too short, a model that reads
    none, or one without tokenizer.
    """
    program = reading.program
    if program.encoder or vocabulary is None:
        what = "the model is an encoder" if program.encoder else "the checkpoint has no tokenizer.json"
        raise UsageError(f"calibration reads a text token by token, and {what}; leave it away")
    tokenizer = folder / "tokenizer.scratch"
    tokenizer.write_bytes(vocabulary.data)
    ids = Tokenizer.open(tokenizer, vocabulary.split_special_tokens).encode(text)[:TOKENS]
    tokenizer.unlink()
    if len(ids) < 2:
        raise UsageError(f"the text to calibrate with has {len(ids)} tokens; give some thousands")
    floats = folder / "floats.scratch"
    write_weights(reading, Recipe.named("none", 32), floats)
    stored = map_tensors(floats)
    progress(f"reading {len(ids)} tokens to calibrate with", 0.1)
    moments = read_text(program, stored, np.asarray(ids, np.int64))
    formats, codes = recipe.formats(program.weights), dict[str, Grouped]()
    for number, (name, storage) in enumerate(formats.items()):
        progress(f"fitting {name}", 0.2 + 0.2 * number / len(formats))
        if storage.is_float or storage.palette or (name, 0) not in moments.sums:
            continue
        codes[name] = _codes(program.matrix(name), name, storage, stored, moments)
    del stored
    floats.unlink()
    return codes


def read_text(program: Program, stored: Mapping[str, Array], ids: I64) -> Moments:
    """Return the moments of a text, read at full depth and read out after each."""
    moments, window = Moments(program), min(WINDOW, program.context_length)
    backend = ReferenceBackend(program, stored, 0, inputs=moments)
    perplexity(SequentialDecoder(backend, backend.new_cache(1, window)), ids, window)
    return moments


def _codes(
    matrix: Matrix, name: str, storage: StorageFormat, stored: Mapping[str, Array], moments: Moments
) -> Grouped:
    """Return the codes of a matrix; each of its copies has inputs of its own."""
    found = []
    weight = torch.from_numpy(np.array(stored[f"{name}.weight"]))
    for copy, part in enumerate(weight.split(matrix.rows)):
        hessian = moments.sums.get((name, copy))
        if hessian is None:  # an expert that was never chosen
            hessian = torch.eye(matrix.columns)
        found.append(gptq(part, hessian, storage.bits, storage.group_size))
    codes, scales = (np.concatenate([getattr(one, side) for one in found]) for side in ("codes", "scales"))
    return Grouped(codes, scales, storage.bits, matrix.columns)
