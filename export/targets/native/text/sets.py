"""The sets of characters that a tokenizer's rules ask for, as one table: each character's class, and what sets that is
in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .....runtime.engines.native.text_format import BLOCK, CODE_POINTS, Tag
from .....runtime.errors import ExportError
from .asked import Set

MOST = 64


class Sets:
    """Sets by their numbers, each once."""

    def __init__(self) -> None:
        self._sets: list[Set] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, found: Set) -> int:
        """The number of a set; ExportError for one too many."""
        key = np.packbits(found).tobytes()
        if key not in self._numbers:
            self._numbers[key] = self.row([found])
        return self._numbers[key]

    def row(self, found: Sequence[Set]) -> int:
        """The number of the first of sets whose numbers follow each other; ExportError for too many."""
        first = len(self._sets)
        if first + len(found) > MOST:
            raise ExportError(f"its rules name more than {MOST} sets of characters")
        self._sets += found
        return first

    def of(self, characters: str) -> int:
        """The number of the set of ``characters``."""
        found = np.zeros(CODE_POINTS, bool)
        found[[ord(c) for c in characters]] = True
        return self.number(found)

    def tables(self) -> dict[int, bytes]:
        """What a section has of all of them."""
        if not self._sets:
            return {}
        bits = np.zeros(CODE_POINTS, np.uint64)
        for number, found in enumerate(self._sets):
            bits |= found.astype(np.uint64) << np.uint64(number)
        masks, classes = np.unique(bits, return_inverse=True)
        if len(masks) > 256:
            raise ExportError("its rules make more than 256 kinds of characters")
        rows, blocks = np.unique(classes.reshape(-1, BLOCK).astype(np.uint8), axis=0, return_inverse=True)
        return {
            Tag.BLOCKS: blocks.reshape(-1).astype("<u2").tobytes(),
            Tag.CLASSES: rows.tobytes(),
            Tag.MASKS: masks.astype("<u8").tobytes(),
        }
