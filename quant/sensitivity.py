"""Which matrices bits are best spent on: what each costs by itself at every depth, and a choice within a budget.

A matrix alone is replaced by its codes, all others stay floats, and a text is read: the divergence KL(float, codes) of
the next token's distribution after each depth is what these codes cost, or of a routed model that at the end. An error
in a shared block comes back at every depth, one in the embedding comes in once and goes out at each read-out; a
measurement has all of that in it. Small errors add up: the divergence is quadratic in them, and those of different
matrices have little to do with each other. So the least sum within the budget is looked for, greedily along the lower
convex hull of each matrix's bits and cost, which is the best choice but for what is left of the budget at the end.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from ..runtime.decode.divergence import log_softmax
from ..runtime.decode.policy_choice import choose_policy
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.decode.windows import DepthReader, EndReader
from ..runtime.engines.backend import F32, I64
from ..runtime.engines.reference.engine import ReferenceBackend
from ..runtime.errors import UsageError
from ..runtime.model.codec import code_shape
from ..runtime.model.program import Program
from ..runtime.model.stored import Array
from ..runtime.model.weights import Matrix, sibling
from .pack import quantize
from .recipe import CHANNEL, Recipe, Rule, StorageFormat
from .scales import searched

FORMATS = (StorageFormat(4, 128), StorageFormat(4, 32), StorageFormat(8, CHANNEL))
"""What each matrix is tried as; all targets but one for stock hosts have kernels for these."""
WINDOW = 256
"""Tokens of a window: its log-probabilities after every depth are kept as float32, [R, WINDOW, V]."""
_SCALE_BITS = 16


@dataclass(frozen=True)
class Option:
    """A format of a matrix: ``bits`` of all of it with its scales, and the divergence in nats after each depth."""

    storage: StorageFormat
    bits: int
    divergence: tuple[float, ...]

    @property
    def cost(self) -> float:
        """The mean divergence of all depths."""
        return sum(self.divergence) / len(self.divergence)


@dataclass(frozen=True)
class Sensitivity:
    """A matrix by its name in the program, its parts' canonical names, its weights, and what its formats cost."""

    name: str
    parts: tuple[str, ...]
    weights: int
    options: tuple[Option, ...]


def measure(
    program: Program,
    stored: Mapping[str, Array],
    ids: I64,
    progress: Callable[[str, float], None],
    formats: Sequence[StorageFormat] = FORMATS,
    heads: Mapping[str, F32] = MappingProxyType({}),
) -> list[Sensitivity]:
    """Return what each of ``formats`` costs each matrix of ``program``, on the text ids [S], S ≥ 2.

    ``stored``: the weights as float32. Codes are the nearest ones to the scales with the least squared error. Every
    window is read once with floats and once for each pair. ``heads``: of a routed model the router's, which decides.
    """
    window = min(WINDOW, program.context_length)
    floats = _Reader(ReferenceBackend(program, stored, CHANNEL), window, heads)
    tried = [
        (name, weight, storage)
        for name, weight in program.weights.items()
        if isinstance(weight, Matrix)
        for storage in formats
    ]
    readers = [
        _Reader(_with_codes(program, stored, name, storage), window, heads) for name, _, storage in tried
    ]
    starts = range(0, len(ids) - 1, window)
    sums = np.zeros((len(tried), program.depths if program.routing is None else 1))
    for number, start in enumerate(starts):
        part = ids[start : min(start + window, len(ids) - 1)]
        wanted = floats.read(part)
        for each, reader in enumerate(readers):
            progress(f"measuring {tried[each][0]}", (number + each / len(readers)) / len(starts))
            for depth, found in enumerate(reader.read(part)):
                sums[each, depth] += _divergence(wanted[depth], found)
    means = (sums / (len(ids) - 1)).tolist()
    options = {name: list[Option]() for name, _, _ in tried}
    for (name, weight, storage), found in zip(tried, means, strict=True):
        options[name].append(Option(storage, _bits(weight, storage), tuple(found)))
    return [
        Sensitivity(
            name, parts_of(name, weight), weight.copies * weight.rows * weight.columns, tuple(options[name])
        )
        for name, weight in program.weights.items()
        if isinstance(weight, Matrix)
    ]


def parts_of(name: str, matrix: Matrix) -> tuple[str, ...]:
    """Return the canonical names of the parts of a matrix, which rules of a recipe are about."""
    return tuple(sibling(name, part) for part in matrix.parts)


def choose(found: Sequence[Sensitivity], bits: float, name: str) -> Recipe:
    """Return the recipe ``name`` of the least cost with ``bits`` a weight at most, scales included, of all matrices.

    UsageError where not even the smallest formats do with so few.
    """
    weights = sum(each.weights for each in found)
    chosen = {each.name: min(each.options, key=lambda option: (option.bits, option.cost)) for each in found}
    left = bits * weights - sum(option.bits for option in chosen.values())
    if left < 0:
        least = sum(option.bits for option in chosen.values()) / weights
        raise UsageError(
            f"a budget of {bits:g} bits a weight, and the smallest formats take {least:.3f}; give more"
        )
    steps = [step for each in found for step in _hull(each, chosen[each.name])]
    closed = set[str]()
    for gain, matrix, option in sorted(steps, key=lambda step: -step[0]):
        more = option.bits - chosen[matrix].bits
        if gain <= 0 or matrix in closed or more > left:
            closed.add(matrix)  # a later step of the same matrix is from where this one ends
            continue
        chosen[matrix], left = option, left - more
    return _recipe(found, {matrix: option.storage for matrix, option in chosen.items()}, name)


def _hull(found: Sensitivity, first: Option) -> list[tuple[float, str, Option]]:
    """Return the steps (cost saved a bit, matrix, where it leads) from ``first`` along the lower convex hull, ever less
    worth it."""
    steps, at = list[tuple[float, str, Option]](), first
    while larger := [option for option in found.options if option.bits > at.bits]:
        here = at
        gains = [((here.cost - option.cost) / (option.bits - here.bits), option) for option in larger]
        gain, at = max(gains, key=lambda each: each[0])
        steps.append((gain, found.name, at))
    return steps


def _recipe(found: Sequence[Sensitivity], chosen: Mapping[str, StorageFormat], name: str) -> Recipe:
    """Return the rules: each matrix that is not stored as most are, then the rest."""
    ((rest, _),) = Counter(chosen.values()).most_common(1)
    rules = [
        Rule(part, chosen[each.name]) for each in found if chosen[each.name] != rest for part in each.parts
    ]
    return Recipe(name, (*rules, Rule("*", rest)), own=True)


def _bits(matrix: Matrix, storage: StorageFormat) -> int:
    rows, groups, size = code_shape(
        matrix.copies * matrix.rows, matrix.columns, storage.group_size, storage.bits
    )
    return rows * groups * (8 * size + _SCALE_BITS)


def _with_codes(
    program: Program, stored: Mapping[str, Array], name: str, storage: StorageFormat
) -> ReferenceBackend:
    """Return an engine whose matrix ``name`` alone is codes."""
    weight = torch.from_numpy(np.array(stored[f"{name}.weight"]))
    codes = quantize(weight, storage.bits, storage.group_size, searched)
    own: dict[str, Array] = {f"{name}.codes": codes.codes, f"{name}.scales": codes.scales}
    sizes = dict.fromkeys(program.weights, CHANNEL) | {name: storage.group_size}
    return ReferenceBackend(program, ChainMap(own, dict(stored)), sizes)


def _divergence(wanted: F32, found: F32) -> float:
    """Return the sum of KL(wanted, found) of log-probabilities [n, V]."""
    return float((np.exp(wanted) * (wanted - found)).sum(dtype=np.float64))


class _Reader:
    """Reads windows on an engine; the caches are made for each, so that many engines can wait beside each other."""

    def __init__(self, backend: ReferenceBackend, window: int, heads: Mapping[str, F32]) -> None:
        self._backend, self._window, self._heads = backend, window, heads

    def read(self, ids: I64) -> list[F32]:
        """Return the log-probabilities [n, V] of ids [n] after every depth, or as a router decides."""
        backend, cache = self._backend, self._backend.new_cache(1, self._window)
        routed = backend.program.routing is not None
        policy = choose_policy(backend.program, self._heads, {}) if routed else None
        decoder = SequentialDecoder(backend, cache, policy, self._heads, chunk=self._window)
        reader = EndReader(decoder) if routed else DepthReader(decoder)
        found: list[list[F32]] = [[] for _ in range(reader.depths)]
        reader.run(ids, lambda depth, first, logits: found[depth].append(log_softmax(logits)))
        backend.forget()
        return [np.concatenate(each) for each in found]
