"""Programs with something changed in them, run whole on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random

import msgspec
import numpy as np
from mutants import mutants, transplants

from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Backend, Lanes
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.weights import tensors

IDS, CALLS = np.array([3, 1, 2, 0, 1, 3, 2]), (3, 1, 1, 2)


def sound(program: Program, lowered: Callable[[Program], bool], seed: int = 1) -> Iterator[Program]:
    """``program``, and others in which something is not as in it, that an engine has."""
    yield program
    json = msgspec.to_builtins(program)
    changes = list(mutants(json))
    changes = Random(seed).sample(changes, len(changes)) + list(transplants(changes, 2000))
    for holder, key, value in changes:
        usual, holder[key] = holder[key], value
        try:
            other = msgspec.convert(json, Program)
        except msgspec.ValidationError:
            continue
        finally:
            holder[key] = usual
        few = sum(tensor.numbers for _, tensor in tensors(other.weights)) < 100_000
        if other == program or next(problems(other), None) or not few or other.context_length < len(IDS):
            continue
        if lowered(other):
            yield other


def small(name: str, value: np.ndarray) -> np.ndarray:
    """Weights that a few layers do not make too large."""
    return (0.4 * value).astype(np.float16 if ".lora_" in name else np.float32)


def logits(backend: Backend) -> np.ndarray:
    """Of ``IDS``, some at a time."""
    loop = SequentialDecoder(backend, backend.new_cache(1, len(IDS)))
    starts = np.cumsum((0, *CALLS))
    return np.concatenate([loop.prompt(IDS[a:b], "all").copy() for a, b in pairwise(starts)])


def filled(backend: Backend) -> np.ndarray:
    """K and V of all depths, made of one state."""
    cache, program = backend.new_cache(1, 4), backend.program
    state = np.random.default_rng(2).standard_normal((1, 4, program.width)).astype(np.float32)
    for depth in range(program.depths):
        lane = np.array([depth]), np.zeros(1, np.int32), np.full(1, 4, np.int32), np.arange(4)[None]
        backend.fill(state, Lanes(*lane, first_slot=depth), cache)
    return np.concatenate([array.ravel() for pair in cache.stages["block"] for array in pair])


def close(wanted: np.ndarray, found: np.ndarray) -> bool:
    """To what another order of additions does, wherever there are numbers."""
    finite = np.isfinite(wanted)
    largest = np.abs(wanted[finite]).max(initial=1e-9)
    return bool(np.abs(found - wanted)[finite].max(initial=0) <= 2e-4 * largest)
