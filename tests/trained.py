"""A tiny model whose codes are fitted, and then trained: what ``quantize --refine`` does, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from editing import read
from tiny import VOCAB

from edgeloop.export import fitted
from edgeloop.export.refine import train
from edgeloop.export.refine.state import State
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.model.program import Program

INT4 = Recipe.named("int4", 32)
IDS = np.random.default_rng(0).integers(0, VOCAB, 32 * 40)


class Made:
    """A tiny looped model, its floats and its fitted codes."""

    def __init__(self, folder: Path, checkpoint: Path, recipe: Recipe = INT4) -> None:
        self.reading, self.recipe, self.floats = read(checkpoint), recipe, folder / "floats"
        fitted.write_floats(self.reading, self.floats)
        self.ids = IDS % self.program.vocab_size
        self.codes = fitted.fit(self.reading, recipe, self.ids[:256], self.floats, lambda step, part: None)

    @property
    def program(self) -> Program:
        return self.reading.program

    def trained(self, steps: int, keep: State | None = None, ids: np.ndarray | None = None) -> train.Refined:
        text = self.ids if ids is None else ids
        told: list[tuple[str, float]] = []
        found = train.refine(
            self.program,
            self.recipe,
            self.floats,
            self.codes,
            text,
            steps,
            lambda *each: told.append(each),
            keep,
        )
        assert told[-1] == (f"training: step {steps} of {steps}, 0 s left", 1.0)
        return found
