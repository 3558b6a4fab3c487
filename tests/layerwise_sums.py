"""Σ x xᵀ of every matrix of a program, by the way that fitting takes through it and by an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edgeloop.export.choices import Choices
from edgeloop.export.layerwise import Stream, steps
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import perplexity
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.stored import Array

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Sums = dict[tuple[str, int], F64]


def layerwise_sums(
    program: Program,
    stored: Mapping[str, Array],
    ids: I64,
    window: int,
    heads: Mapping[str, F32] = MappingProxyType({}),
) -> Sums:
    """Layer by layer, every window through one before the next; with ``heads`` as the router says."""
    windows = [ids[first : first + window] for first in range(0, len(ids), window)]
    choices = [Choices(program, heads) for _ in windows if heads]
    stream, found = Stream(program, windows, {}, choices), Sums()
    stream.use(stored)
    for step in steps(program, bool(heads)):
        for number in range(len(windows)) if step.matrices else ():
            for name, copy, x in stream.inputs(step, number):
                found[name, copy] = found.get((name, copy), 0) + x.T.astype(np.float64) @ x
        stream.run(step)
    return found


def run_sums(
    program: Program,
    stored: Mapping[str, Array],
    ids: I64,
    window: int,
    heads: Mapping[str, F32] = MappingProxyType({}),
) -> Sums:
    """Window by window, in chunks, read out after every depth: as perplexity is measured; with ``heads`` as the router
    says, read out at the end."""
    found = Sums()

    def add(name: str, first: int, x: npt.NDArray[np.float32]) -> None:
        key = name, first // program.matrix(name).rows
        found[key] = found.get(key, 0) + x.T.astype(np.float64) @ x

    backend = ReferenceBackend(program, stored, 0, inputs=add)
    cache = backend.new_cache(1, window)
    if heads:
        policy = choose_policy(program, heads, {})
        decoder = SequentialDecoder(backend, cache, policy, heads, chunk=7)
        for first in range(0, len(ids), window):
            decoder.reset()
            for start in range(first, min(first + window, len(ids)), 7):
                decoder.prompt(ids[start : min(start + 7, first + window)], "all")
        return found
    decoder = SequentialDecoder(backend, cache, chunk=7)
    perplexity(decoder, np.append(ids, 0), window)  # the token behind the last one is only predicted
    return found
