"""ExecuTorch, flat: one .pte that the stock LLM runners of phones load as it is, at full depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from safetensors.torch import load_file

from ...quant.recipe import Recipe
from ...runtime import manifest
from ...runtime.backend import F32
from ...runtime.errors import ExportError, ParityError
from ...runtime.loop import DepthLoop
from ...runtime.spec import Spec
from ..fused import Numerics
from ..oracle import Oracle
from ..parity import CHUNKS, difference
from ..pte.flat import Flat
from ..pte.flat_program import FlatProgram, chunk_of, constants, lower_flat, rows_of
from ..pte.oracle import RowsAsInt8, parity_bound
from ..target import Job
from .executorch import check_recipe

FOLDER, PROGRAM = "executorch-flat", "model.pte"
STEPS = 4
"""Tokens that the check decodes one by one after its prompt."""


class ExecutorchFlatTarget:
    """The flat layout for ExecuTorch's own LLM runners."""

    name = "executorch-flat"

    def check(self, spec: Spec, recipe: Recipe) -> None:
        """ExportError for a router, which decides token by token, and for what XNNPACK does not take."""
        if spec.routing is not None:
            raise ExportError(
                f"the model has a {spec.routing.kind}-choice router, and a flat graph runs every depth for every "
                "token; export it with --layout staged"
            )
        check_recipe(spec, recipe)

    def export(self, job: Job) -> manifest.Target:
        """executorch-flat/model.pte, its logits checked."""
        (job.folder / FOLDER).mkdir()
        path = job.folder / FOLDER / PROGRAM
        weights, bits = load_file(job.weights), job.recipe.bits
        chunk = chunk_of(job.spec)
        rows = rows_of(job.spec, chunk)
        named = constants(job.spec, chunk)
        job.progress("executorch: the unrolled graph", 0.0)
        path.write_bytes(lower_flat(Flat(job.spec, weights, bits, rows, chunk), named))
        job.progress("executorch: parity of the logits", 0.9)
        numerics = Numerics(bits, job.recipe.group_size, 1, RowsAsInt8() if bits < 32 else None)
        error = check_parity(FlatProgram(path), Oracle(job.spec, weights, numerics), chunk)
        job.progress("executorch: done", 1.0)
        flat = manifest.Flat(constants=named, rows=rows)
        return manifest.Target({}, f"{FOLDER}/{PROGRAM}", manifest.Parity((), error, error), flat=flat)


class Forward(Protocol):
    """A flat model, saved or not."""

    def logits(self, ids: Sequence[int], start: int) -> F32:
        """The tokens ``ids`` from position ``start`` on → logits [V] of the last one."""
        ...


def check_parity(program: Forward, oracle: Oracle, chunk: int, seed: int = 0) -> float:
    """The largest relative difference of the logits, of a prompt in pieces and of tokens one by one.

    ParityError beyond ``parity_bound``.
    """
    spec = oracle.spec
    capacity = min(spec.context_length, sum(CHUNKS) + STEPS)
    ids = np.random.default_rng(seed).integers(0, spec.vocab_size, capacity, dtype=np.int64)
    ends = np.minimum(np.cumsum([min(size, chunk) for size in (*CHUNKS, *[1] * STEPS)]), capacity)
    parts = [part for part in np.split(ids, ends) if len(part)]

    def run() -> list[F32]:
        loop = DepthLoop(oracle, oracle.new_cache(1, capacity))
        return [loop.forward(part)[0].copy() for part in parts]

    wanted = run()
    bound = parity_bound(oracle.numerics, run, wanted)
    worst, start = 0.0, 0
    for part, logits in zip(parts, wanted, strict=True):
        error = difference(program.logits(part.tolist(), start), logits)
        worst, start = max(worst, error), start + len(part)
        if not error <= bound:
            raise ParityError(
                f"the flat program disagrees with the torch modules in the logits of token {start}: {error:.2g} "
                f"relative, at most {bound:.0e} wanted; the bundle was not written, please report the checkpoint's "
                "config"
            )
    return worst
