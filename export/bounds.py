"""How near an artifact must be to what the reference engine computes.

With float arithmetic on both sides only the order of adding may differ: ``EXACT``. Engines with int8 activations are
compared with the reference engine on the same activations (``runtime/model/activations.py``), but even so no two
processors agree: their kernels add in other orders and take 1/√x from other instructions, and a value near the middle
of a step that rounds the other way is off by the whole step. In a model with several layers one such value moves
everything behind it nearly as far as all of them would: on the demo, with XNNPACK's activations, a last bit changed
here and there gives 0.009, and *every* activation rounded up or down at random 0.03.

So that is the bound: the effect of rounding every activation, and every zero point, either way. No processor can do
more to a correct artifact, and the bound does not depend on the processor that the export runs on. It is measured for
each thing that is compared, in ``RUNS`` runs, and ``MARGIN`` times the largest is allowed, because a largest difference
is itself random: two such runs differ by up to 2. That an artifact is right in all else is not left to this bound: it
is held to ``EXACT`` with float activations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..quant.recipe import Recipe
from ..runtime.engines.backend import F32
from ..runtime.engines.reference.engine import ReferenceBackend
from ..runtime.model.activations import ACTIVATIONS, Activations

EXACT = 1e-4
"""Bound for float arithmetic on both sides: only the order of adding may differ."""
RUNS, MARGIN = 2, 3
REPORT = "please report the checkpoint's config"
KERNELS = (
    "with float activations the same artifact agrees, so it is this processor's int8 kernels that compute something "
    "else; export on another machine, or with --quant none"
)
"""What to do where only int8 activations differ."""


def activations_of(recipe: Recipe, engine: str) -> Activations | None:
    """Return how the kernels of ``engine``, a target's, round a matrix's inputs; None where all is float."""
    if not recipe.has_codes and recipe.deltas.is_float:
        return None
    return ACTIVATIONS[{"onnx": "ONNX graphs", "executorch": "XNNPACK", "native": "lanes"}[engine]]


def difference(found: F32, wanted: F32) -> float:
    """Return the largest absolute difference over the largest absolute value; infinite when anything is not finite."""
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))


def bounds(
    reference: ReferenceBackend,
    activations: Activations | None,
    run: Callable[[ReferenceBackend], list[F32]],
    wanted: list[F32],
) -> list[float]:
    """Return how much each of ``wanted``, the results of ``run`` on ``reference`` with ``activations``, may differ."""
    found = [EXACT] * len(wanted)
    for seed in range(RUNS) if activations else ():
        others = run(reference.with_activations(activations.jittered(seed)))  # type: ignore[union-attr]
        found = [max(b, MARGIN * difference(*pair)) for b, *pair in zip(found, others, wanted, strict=True)]
    return found
