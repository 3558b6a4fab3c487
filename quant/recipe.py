"""How each tensor is stored: a short ordered list of rules, the first match wins.

Rules are about matrices, by the canonical names of ``runtime/model/weights.py`` without their ``.weight``: ``embed``,
``head``, ``segments.1.layers.0.q_proj``. Norms and biases are float32 whatever a recipe says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..runtime.errors import UsageError
from ..runtime.model.weights import Matrix, Weight, sibling, tensors

GROUP_SIZES = (32, 64, 128)
CHANNEL = 0
"""The group size of codes with one scale for each row of a matrix: an output channel, as engines call it."""


@dataclass(frozen=True)
class StorageFormat:
    """The format of one stored tensor: float32, float16, or integer codes of ``bits`` with float16 group scales.

    ``group_size``: codes along a row that share a scale, or ``CHANNEL``. ``palette``: the codes are indices into tables
    of float16 values (``palette.py``).
    """

    bits: int
    group_size: int = CHANNEL
    palette: bool = False

    @property
    def is_float(self) -> bool:
        """Whether it is stored as float32 or float16."""
        return self.bits >= 16

    def __str__(self) -> str:
        if self.is_float:
            return f"float{self.bits}"
        if self.palette:
            return f"{self.bits} bits in tables"
        groups = f"in groups of {self.group_size}" if self.group_size else "with a scale a row"
        return f"{self.bits} bits {groups}"


@dataclass(frozen=True)
class Rule:
    """Matrices whose canonical name matches ``pattern`` (``*``, ``?``, ``[…]``) are stored as ``storage``."""

    pattern: str
    storage: StorageFormat


FLOAT32, FLOAT16, INT8 = StorageFormat(32), StorageFormat(16), StorageFormat(8)
TABLES = StorageFormat(4, palette=True)


@dataclass(frozen=True)
class Recipe:
    """A named list of rules, whose last matches every name.

    ``deltas``: how A and B of the depths' deltas are stored: as floats, or in 8 bits with a scale a row. Of rank 8 they
    are few bytes; of rank 64 on all projections a depth's are 43% of an int4 layer of width 960 in float16, which the
    lane engine's passes show (docs/native.md).
    ``own``: it is a file's, written for a model, so that a rule which matches nothing in it is a mistake.
    """

    name: str
    rules: tuple[Rule, ...]
    deltas: StorageFormat = FLOAT16
    own: bool = False

    @staticmethod
    def named(name: str, group_size: int) -> Recipe:
        """Return a preset; UsageError for a name or group size that does not exist. ``group_size``: of those of its
        matrices that have groups."""
        if name not in RECIPES:
            raise UsageError(f"unknown quantization {name!r}: choose one of {', '.join(RECIPES)}")
        if group_size not in GROUP_SIZES:
            raise UsageError(f"group size {group_size}: choose one of {', '.join(map(str, GROUP_SIZES))}")
        return RECIPES[name](group_size)

    @staticmethod
    def palettes() -> Recipe:
        """Return the recipe of 4-bit indices into tables; no target but Core ML takes them."""
        return Recipe("palette4", (Rule("*", TABLES),))

    @property
    def rest(self) -> StorageFormat:
        """The format of matrices that no rule but the last is about: most of them."""
        return self.rules[-1].storage

    @property
    def bits(self) -> int:
        """Bits of most matrices, 32 for ``none``."""
        return self.rest.bits

    @property
    def group_size(self) -> int:
        """Group size of most matrices; 0: one scale for each row, or none."""
        return self.rest.group_size

    @property
    def palettized(self) -> bool:
        """Whether most matrices are indices into tables."""
        return self.rest.palette

    @property
    def has_tables(self) -> bool:
        """Whether there may be matrices of indices into tables."""
        return any(rule.storage.palette for rule in self.rules)

    @property
    def has_codes(self) -> bool:
        """Whether there may be matrices of codes with scales."""
        return not all(rule.storage.is_float or rule.storage.palette for rule in self.rules)

    @property
    def is_fitted(self) -> bool:
        """Whether there may be matrices that can be fitted to a text: of codes, or of indices into tables."""
        return not all(rule.storage.is_float for rule in self.rules)

    def coded_deltas(self, weights: Mapping[str, Weight]) -> str | None:
        """Return the name of a delta of a program that is stored as codes; None where there is none."""
        names = (name for name, tensor in tensors(weights) if tensor.kind == "delta")
        return None if self.deltas.is_float else next(names, None)

    def storage(self, name: str, kind: str = "matrix") -> StorageFormat:
        """Return the format of the canonical tensor ``name``, whose ``kind`` is as in ``runtime.model.weights``.

        Vectors are floats, whatever they are called: norms and biases act on every number of a state.
        """
        if kind == "vector" or name.endswith(".lora_scale"):
            return FLOAT32
        if kind == "delta":
            return self.deltas
        bare = name.removesuffix(".weight")
        return next(rule.storage for rule in self.rules if fnmatchcase(bare, rule.pattern))

    def formats(self, weights: Mapping[str, Weight]) -> dict[str, StorageFormat]:
        """Return the format of each matrix of a program by its name there.

        UsageError where rules would cut a matrix that is stored as one, give 4 bits to half a byte, or match nothing.
        """
        found: dict[str, StorageFormat] = {}
        for name, parts in _matrices(weights).items():
            each = {part: self.storage(part) for part in parts}
            first, *others = each.items()
            for part, storage in others:
                if storage != first[1]:
                    raise UsageError(
                        f"recipe {self.name} stores {first[0]} as {first[1]} and {part} as {storage}, which are one "
                        "matrix; give them one rule"
                    )
            matrix = weights[name]
            assert isinstance(matrix, Matrix)
            if first[1].bits == 4 and not first[1].palette and not first[1].group_size and matrix.columns % 2:
                raise UsageError(
                    f"recipe {self.name} stores {name} with a scale a row in 4 bits, and its rows of {matrix.columns} "
                    "end in half a byte; give it groups"
                )
            found[name] = first[1]
        if self.own and (idle := next(self._idle(weights), None)):
            names = [part for parts in _matrices(weights).values() for part in parts]
            raise UsageError(
                f"rule {idle!r} of recipe {self.name} is the first match of no matrix of the model; it has "
                f"{', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
            )
        return found

    def group_sizes(self, weights: Mapping[str, Weight]) -> dict[str, int]:
        """Return the group size of each matrix of a program (``runtime.model.codec.GroupSizes``)."""
        return {name: storage.group_size for name, storage in self.formats(weights).items()}

    def _idle(self, weights: Mapping[str, Weight]) -> Iterator[str]:
        """Yield the patterns, of all rules but the last, that no matrix is stored by."""
        names = [part for parts in _matrices(weights).values() for part in parts]
        used = {next(n for n, r in enumerate(self.rules) if fnmatchcase(name, r.pattern)) for name in names}
        yield from (rule.pattern for n, rule in enumerate(self.rules[:-1]) if n not in used)


def _matrices(weights: Mapping[str, Weight]) -> dict[str, list[str]]:
    """Return the canonical names, without ``.weight``, of each matrix's parts."""
    return {
        name: [sibling(name, part) for part in weight.parts]
        for name, weight in weights.items()
        if isinstance(weight, Matrix)
    }


def _rest(bits: int, group_size: int) -> tuple[Rule, ...]:
    return (Rule("*", StorageFormat(bits, group_size)),)


_TABLES = ("embed", "head")
_ATTENTION = ("*.[qkvo]_proj", "*.attention_gate")


def _finer(name: str, patterns: Sequence[str]) -> Callable[[int], Recipe]:
    """Return a preset of 4 bits in groups whose matrices of ``patterns`` have 8 and a scale a row."""
    rules = tuple(Rule(pattern, StorageFormat(8, CHANNEL)) for pattern in patterns)
    return lambda group_size: Recipe(name, (*rules, *_rest(4, group_size)))


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "none": lambda group_size: Recipe("none", (Rule("*", FLOAT32),), FLOAT32),
    "int8": lambda group_size: Recipe("int8", _rest(8, group_size)),
    "int8-channel": lambda group_size: Recipe("int8-channel", _rest(8, CHANNEL)),
    "int4": lambda group_size: Recipe("int4", _rest(4, group_size)),
    "int4-mixed": _finer("int4-mixed", _TABLES),
    "phone": _finer("phone", (*_TABLES, *_ATTENTION)),
}
"""The presets, each a function of the group size."""
