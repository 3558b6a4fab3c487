"""Programs with something changed in them, whole: what is sound still computes the same on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from lowered import random_weights, write
from mutants import mutants, transplants
from programs import PROGRAMS

from edgeloop.export.lower.graph import Stored
from edgeloop.export.lower.onnx import check, write_graphs
from edgeloop.runtime.backend import Backend, Lanes, can_fill
from edgeloop.runtime.backends.onnx import OnnxBackend
from edgeloop.runtime.backends.reference import ReferenceBackend
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.loop import DepthLoop
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.weights import tensors

IDS, CALLS = np.array([3, 1, 2, 0, 1, 3, 2]), (3, 1, 1, 2)
EACH = 6


def lowered(program: Program) -> bool:
    """Are there graphs of it?"""
    try:
        check(program)
    except ExportError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, make in PROGRAMS.items() if lowered(make())])
def test_onnx_computes_what_the_reference_does(name: str, tmp_path: Path) -> None:
    make = PROGRAMS[name]
    for number, program in enumerate(islice(sound(make()), EACH)):
        folder = tmp_path / str(number)
        folder.mkdir()
        stored = {name: _small(name, value) for name, value in random_weights(program.weights).items()}
        graphs = write_graphs(program, Stored.open(write(stored, folder), 0), can_fill(program))
        engines = ReferenceBackend(program, stored, 0), OnnxBackend(program, graphs)
        with np.errstate(all="ignore"):  # an exp of an exp may be larger than a float32
            assert close(*map(logits, engines))
            if can_fill(program):
                assert close(*map(filled, engines))


def sound(program: Program) -> Iterator[Program]:
    """``program``, and others in which something is not as in it."""
    yield program
    json = msgspec.to_builtins(program)
    changes = list(mutants(json))
    changes = Random(1).sample(changes, len(changes)) + list(transplants(changes, 2000))
    for holder, key, value in changes:
        usual, holder[key] = holder[key], value
        try:
            other = msgspec.convert(json, Program)
        except msgspec.ValidationError:
            continue
        finally:
            holder[key] = usual
        small = sum(tensor.numbers for _, tensor in tensors(other.weights)) < 100_000
        if other == program or next(problems(other), None) or not small or other.context_length < len(IDS):
            continue
        if lowered(other):
            yield other


def _small(name: str, value: np.ndarray) -> np.ndarray:
    return (0.4 * value).astype(np.float16 if ".lora_" in name else np.float32)


def logits(backend: Backend) -> np.ndarray:
    """Of ``IDS``, some at a time."""
    loop = DepthLoop(backend, backend.new_cache(1, len(IDS)))
    starts = np.cumsum((0, *CALLS))
    return np.concatenate([loop.forward(IDS[a:b], "all").copy() for a, b in pairwise(starts)])


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
