"""How each tensor is stored: a short ordered list of rules, the first match wins."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..runtime.errors import UsageError

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class StorageFormat:
    """The format of one stored tensor: float32, float16, or integer codes of ``bits`` with float16 group scales.

    ``palette``: the codes are indices into tables of float16 values (``palette.py``).
    """

    bits: int
    palette: bool = False

    @property
    def is_float(self) -> bool:
        """Is it stored as float32 or float16?"""
        return self.bits >= 16


@dataclass(frozen=True)
class Rule:
    """Tensors whose canonical name matches ``pattern`` are stored as ``storage``."""

    pattern: str
    storage: StorageFormat


FLOAT32, FLOAT16 = StorageFormat(32), StorageFormat(16)

# Deltas stay floats. Of rank 8 they are few bytes; of rank 64 on all projections a depth's are 43% of an int4 layer of
# width 960, which the lane engine's passes show (docs/native.md), and codes of 8 bits would be half of that.
_SMALL = (Rule("*.lora_scale", FLOAT32), Rule("*.lora_?", FLOAT16))

RECIPES: dict[str, tuple[Rule, ...]] = {
    "none": (Rule("*", FLOAT32),),
    "int8": (*_SMALL, Rule("*", StorageFormat(8))),
    "int8-channel": (*_SMALL, Rule("*", StorageFormat(8))),
    "int4": (*_SMALL, Rule("*", StorageFormat(4))),
}

_PALETTE = "palette4"
_RULES = RECIPES | {_PALETTE: (*_SMALL, Rule("*", StorageFormat(4, palette=True)))}
"""Also the recipe that a target asks for rather than a user: the tables of one target's format."""

PER_CHANNEL = frozenset({"int8-channel"})
"""Recipes whose groups are whole rows: output channels, as engines call them."""


@dataclass(frozen=True)
class Recipe:
    """A named rule list and the group size of its integer codes; 0: one scale for each row of a matrix."""

    name: str
    group_size: int

    @staticmethod
    def named(name: str, group_size: int) -> Recipe:
        """Return a recipe; UsageError for a name or group size that does not exist. ``group_size``: for those that
        have groups."""
        if name not in RECIPES:
            raise UsageError(f"unknown quantization {name!r}: choose one of {', '.join(RECIPES)}")
        if group_size not in GROUP_SIZES:
            raise UsageError(f"group size {group_size}: choose one of {', '.join(map(str, GROUP_SIZES))}")
        return Recipe(name, 0 if name in PER_CHANNEL else group_size)

    @staticmethod
    def palettes() -> Recipe:
        """Return the recipe of 4-bit indices into tables; no target but Core ML takes them."""
        return Recipe(_PALETTE, 0)

    @property
    def bits(self) -> int:
        """Bits of the large matrices, 32 for ``none``."""
        return self._rest.bits

    @property
    def palettized(self) -> bool:
        """Are the large matrices indices into tables?"""
        return self._rest.palette

    def storage(self, name: str, kind: str = "matrix") -> StorageFormat:
        """Return the format of the tensor ``name``, whose ``kind`` is as in ``runtime.model.weights``.

        Vectors are floats, whatever they are called: norms and biases act on every number of a state.
        """
        if kind == "vector":
            return FLOAT32
        return next(r.storage for r in _RULES[self.name] if fnmatchcase(name, r.pattern))

    @property
    def _rest(self) -> StorageFormat:
        return _RULES[self.name][-1].storage
