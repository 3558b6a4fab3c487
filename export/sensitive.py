"""What the codes of each matrix of a checkpoint cost on a text, for a recipe that spends bits where they count."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..quant.recipe import Recipe
from ..quant.sensitivity import Sensitivity, measure
from ..runtime.errors import UsageError
from ..runtime.model.stored import map_tensors
from .checkpoint import Checkpoint
from .families import read_checkpoint
from .fitted import text_ids
from .heads import load_heads
from .stored import write_weights
from .target import Progress
from .text.vocabulary import read_vocabulary

TOKENS = 1024
"""Of the text by default; the divergence of a matrix is known to some per cent then, and they are far apart."""


def sensitivity(
    checkpoint: Path,
    text: str,
    tokens: int = TOKENS,
    progress: Progress = lambda step, fraction: None,
) -> list[Sensitivity]:
    """Return what the formats of ``quant.sensitivity.FORMATS`` cost each matrix of the checkpoint folder.

    The first ``tokens`` tokens of ``text`` are read. The system's folder for temporary files has room for the model as
    float32. UsageError for a text that is too short, a model that reads none, or one without tokenizer; CheckpointError
    as of an export.
    """
    source = Checkpoint.open(checkpoint)
    reading = read_checkpoint(source)
    vocabulary = read_vocabulary(source.folder, source.config, reading.program.vocab_size)
    if reading.program.encoder or vocabulary is None:
        what = (
            "the model is an encoder" if reading.program.encoder else "the checkpoint has no tokenizer.json"
        )
        raise UsageError(f"sensitivity is measured on a text that is read token by token, and {what}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ids = text_ids(reading, vocabulary, text, tokens, folder)
        progress("reading the checkpoint", 0.0)
        write_weights(reading, Recipe.named("none", 32), folder / "floats")
        return measure(
            reading.program,
            map_tensors(folder / "floats"),
            ids,
            lambda step, part: progress(step, 0.05 + 0.95 * part),
            heads={name: head.numpy() for name, head in load_heads(reading).items()},
        )
