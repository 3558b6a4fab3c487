"""ExecuTorch, flat: one .pte that the stock LLM runners of phones load as it is, at full depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from executorch.exir import EdgeProgramManager
from safetensors.torch import load_file

from ....quant.recipe import Recipe
from ....runtime.bundle import manifest
from ....runtime.decode.sequential import SequentialDecoder
from ....runtime.engines.backend import F32
from ....runtime.engines.executorch.flat import Flat as FlatDetails
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ExportError, ParityError
from ....runtime.model.activations import Activations
from ....runtime.model.program import Program
from ...bounds import EXACT, KERNELS, REPORT, activations_of, bounds, difference
from ...parity import CHUNKS
from ...reference import reference_engine
from ...target import Job, check_shared
from .exact import EXACT_PROGRAM, exact_activations
from .flat import Flat, UnsavedProgram, check_flat
from .flat_program import FlatProgram, chunk_of, constants, lower_flat, rows_of, serialize_flat
from .target import check_recipe

FOLDER, PROGRAM = "executorch-flat", "model.pte"
STEPS = 4
"""Tokens that the check decodes one by one after its prompt."""


class ExecutorchFlatTarget:
    """The flat layout for ExecuTorch's own LLM runners."""

    name = "executorch-flat"

    def check(self, program: Program, recipe: Recipe) -> None:
        """Raise ExportError for a router, which decides token by token, and for what XNNPACK does not take."""
        if program.routing is not None:
            raise ExportError(
                f"the model has a router ({program.routing.kind} choice), and a flat graph runs every depth for every "
                "token; export it with --layout staged"
            )
        check_shared(program, "executorch")
        check_flat(program)
        check_recipe(program, recipe)

    def export(self, job: Job) -> manifest.Target:
        """Write executorch-flat/model.pte, and check its logits."""
        (job.folder / FOLDER).mkdir()
        path = job.folder / FOLDER / PROGRAM
        weights = load_file(job.weights)
        chunk = chunk_of(job.program)
        rows = rows_of(job.program, chunk)
        named = constants(job.program, chunk)
        model = Flat(job.program, weights, rows, chunk)
        reference = reference_engine(job.program, job.weights, job.recipe)
        job.progress("executorch: the unrolled model", 0.0)
        unsaved = UnsavedProgram(model)
        check_parity(unsaved, reference, chunk, "the unrolled model")  # seconds; lowering takes minutes
        unsaved.close()
        job.progress("executorch: the unrolled graph", 0.1)
        edge = lower_flat(model, named)
        spare = copy.deepcopy(edge)  # writing caches in place is written into the graph
        path.write_bytes(serialize_flat(edge))
        job.progress("executorch: parity of the logits", 0.9)
        parity = check_program(path, spare, reference, chunk, activations_of(job.recipe, "executorch"))
        job.progress("executorch: done", 1.0)
        details = FlatDetails(constants=named, rows=rows)
        return manifest.Target({}, f"{FOLDER}/{PROGRAM}", parity, details)


class FlatModel(Protocol):
    """A flat model, saved or not."""

    def logits(self, ids: Sequence[int], start: int) -> F32:
        """Return the logits [V] of the last of the tokens ``ids`` from position ``start`` on."""
        ...


def check_program(
    path: Path,
    edge: EdgeProgramManager,
    reference: ReferenceBackend,
    chunk: int,
    activations: Activations | None,
) -> manifest.Parity:
    """Check that the program equals the reference engine with float activations, and as it ships with ``activations``.

    ``edge`` is what the program was made of; it is used up. ParityError where they differ.
    """
    if activations is None:
        logits, _ = check_parity(FlatProgram(path), reference, chunk)
        return manifest.Parity((), logits, logits, EXACT)
    exact = path.with_name(EXACT_PROGRAM)
    try:
        exact.write_bytes(serialize_flat(exact_activations(edge)))
        logits, _ = check_parity(
            FlatProgram(exact), reference, chunk, "the flat program with float activations"
        )
    finally:
        exact.unlink(missing_ok=True)
    what = "the flat program with int8 activations"
    shipped, bound = check_parity(FlatProgram(path), reference, chunk, what, KERNELS, activations)
    return manifest.Parity((), logits, shipped, bound)


def check_parity(
    program: FlatModel,
    reference: ReferenceBackend,
    chunk: int,
    what: str = "the flat program",
    advice: str = REPORT,
    activations: Activations | None = None,
) -> tuple[float, float]:
    """Return (largest relative difference of the logits, its bound), of a prompt in pieces and of tokens one by one.

    ParityError where one is beyond its bound.
    """
    model = reference.program
    capacity = min(model.context_length, sum(CHUNKS) + STEPS)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, capacity, dtype=np.int64)
    ends = np.minimum(np.cumsum([min(size, chunk) for size in (*CHUNKS, *[1] * STEPS)]), capacity)
    parts = [part for part in np.split(ids, ends) if len(part)]

    def run(engine: ReferenceBackend) -> list[F32]:
        decoder = SequentialDecoder(engine, engine.new_cache(1, capacity))
        return [decoder.prompt(part)[0].copy() for part in parts]

    reference = reference.with_activations(activations)
    wanted = run(reference)
    # One bound for all of them: how far chance moves the logits of one token says little of another's.
    bound = max(bounds(reference, activations, run, wanted))
    worst, start = 0.0, 0
    for part, logits in zip(parts, wanted, strict=True):
        error = difference(program.logits(part.tolist(), start), logits)
        worst, start = max(worst, error), start + len(part)
        if not error <= bound:
            raise ParityError(
                f"{what} disagrees with the reference engine in the logits of token {start}: {error:.2g} relative, at "
                f"most {bound:.0e} wanted; the bundle was not written, {advice}"
            )
    return worst, bound
