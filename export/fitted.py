"""Codes fitted to what a model's matrices are given while it reads a text, at every depth.

The model reads the text with the reference engine, layer by layer (``layerwise.py``). For each matrix the sum of x xᵀ
over its inputs is kept: of a shared block over all depths, of the head over all read-outs; of a routed model over the
tokens that the router sends to each depth, and its one read-out. GPTQ (``quant/gptq.py``) rounds for that sum, to codes
or to the values of tables (``quant/palette.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..quant.recipe import Recipe
from ..runtime.engines.backend import I64
from ..runtime.errors import UsageError
from ..runtime.text.tokenizer import Tokenizer
from .family import Reading
from .heads import load_heads
from .loop_gptq import Keeper, LoopGPTQ
from .stored import Coded, write_weights
from .target import Progress
from .text.vocabulary import Vocabulary

WINDOW, TOKENS = 512, 1 << 14
"""Tokens of a window, and of the text, at most: with 16384 the sums of 256 to 2560 columns are well filled."""
CHARACTERS = 16
"""Of a text so many a token are looked at first, and as many again until the tokens are enough."""
SUM_BYTES = 1 << 29
"""Of sums that are in memory; the others are in files meanwhile."""


class Nowhere:
    """A Keeper that keeps nothing."""

    def load(self, name: str) -> Coded | None:
        """Return None."""
        return None

    def save(self, name: str, codes: Coded) -> None:
        """Do nothing."""


def check_fits(recipes: Mapping[str, Recipe], flag: str = "--calibrate") -> None:
    """Raise UsageError where a target stores floats alone. ``recipes``: by the names of the targets."""
    for target, recipe in recipes.items():
        if not recipe.is_fitted:
            raise UsageError(
                f"{flag} fits codes to a text, and target {target} has none: its matrices are "
                f"stored as {recipe.rest}; leave {flag} away, or export that target by itself without it"
            )


def text_ids(reading: Reading, vocabulary: Vocabulary | None, text: str, tokens: int, folder: Path) -> I64:
    """Return the first ``tokens`` ids [S] of ``text``.

    UsageError for a text that is too short, a model that reads none, or one without tokenizer.
    """
    if reading.program.encoder or vocabulary is None:
        what = (
            "the model is an encoder" if reading.program.encoder else "the checkpoint has no tokenizer.json"
        )
        raise UsageError(f"calibration reads a text token by token, and {what}; leave it away")
    path = folder / "tokenizer.scratch"
    path.write_bytes(vocabulary.data)
    tokenizer = Tokenizer.open(path, vocabulary.split_special_tokens)
    path.unlink()
    seen, ids = CHARACTERS * tokens, list[int]()
    while len(ids) < tokens:
        ids = tokenizer.encode(text[:seen])
        if seen >= len(text):
            break
        seen *= 2
    if len(ids) < 2:
        raise UsageError(f"the text to calibrate with has {len(ids)} tokens; give some thousands")
    return np.asarray(ids[:tokens], np.int64)


def write_floats(reading: Reading, path: Path) -> None:
    """Write every stored tensor of ``reading`` as float32, which ``fit`` reads."""
    write_weights(reading, Recipe.named("none", 32), path)


def fit(
    reading: Reading,
    recipe: Recipe,
    ids: I64,
    floats: Path,
    progress: Progress,
    keeper: Keeper | None = None,
) -> dict[str, Coded]:
    """Return codes for the text ``ids`` [S] of the matrices that ``recipe`` stores as such, by their names.

    ``floats``: what ``write_floats`` wrote; beside it there is room for sums.
    """
    program = reading.program
    formats = {
        name: storage for name, storage in recipe.formats(program.weights).items() if not storage.is_float
    }
    window = min(WINDOW, program.context_length)
    heads = {name: head.numpy() for name, head in load_heads(reading).items()} if program.routing else {}
    fitter = LoopGPTQ(program, floats, formats, SUM_BYTES, keeper or Nowhere(), heads)
    return fitter.fit([ids[first : first + window] for first in range(0, len(ids), window)], progress)
