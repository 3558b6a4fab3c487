"""Operators of engine executorch, from the ETDump of each method.

An ETDump says what an operator took in each run of its method, in whole microseconds, and not when: operators are
laid end to end within their call, in the order of the method. XNNPACK has fused norms into several operators, so layers
are separated by their quantized matrices, and the norm before one is counted to the layer before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.bundle.folder import Bundle
from ...runtime.engines.executorch.engine import ExecutorchBackend
from ...runtime.engines.executorch.kinds import numbered
from ...runtime.engines.table import EngineOptions
from ...runtime.errors import EngineError
from ..bench_profile import blocks_of, kind_of
from .calls import StageCall
from .operators import Operator, layers_of

HEAD = "head"
"""The method that turns an epilogue's state into logits."""


def open_executorch(bundle: Bundle, options: EngineOptions, folder: Path) -> ExecutorchBackend:
    """Open the engine with traces of its methods."""
    return ExecutorchBackend.open(bundle, options.threads, profiled=True)


def executorch_operators(
    backend: ExecutorchBackend, calls: Sequence[StageCall], folder: Path
) -> list[Operator]:
    """Return the operators of those of ``calls`` that run one token, which are the last runs of their methods.

    EngineError where a method has fewer runs.
    """
    program, numbers = backend.program, defaultdict[str, list[int]](list)
    for number, call in enumerate(calls):
        if call.tokens == 1:
            block = program.loop.schedule[call.depth] if call.depth else 0
            numbers[numbered(call.stage, block)].append(number)
    backend.bridge.write_profiles(folder)
    found = []
    for stage, of in numbers.items():
        layers = len(program.stage(calls[of[0]].stage, calls[of[0]].depth or 0).layers)
        runs = _runs(folder / f"{stage}_m1.etdp", layers)
        heads = _runs(folder / f"{HEAD}_m1.etdp", 0) if stage == "epilogue" else []
        for number, run in zip(of, _last(runs, len(of), stage), strict=True):
            found += _laid(number, run)
        if heads:
            ends = {one.call: one.begin_us + one.us for one in found}
            for number, run in zip(of, _last(heads, len(of), HEAD), strict=True):
                found += _laid(number, run, ends.get(number, 0.0))
    return sorted(found, key=lambda one: (one.call, one.begin_us))


Run = list[tuple[str, float, int | None]]
"""Kind, microseconds and layer of the operators of a run."""


def _last(runs: list[Run], count: int, method: str) -> list[Run]:
    if not runs and method == "epilogue":  # of a model without layers behind the loop
        return [[]] * count
    if len(runs) < count:
        raise EngineError(
            f"the ETDump of {method} has {len(runs)} runs of {count} calls; this is a bug, please report it"
        )
    return runs[-count:]


def _laid(number: int, run: Run, at: float = 0.0) -> list[Operator]:
    found = []
    for kind, us, layer in run:
        found.append(Operator(number, kind, at, us, layer))
        at += us
    return found


def _runs(path: Path, layers: int) -> list[Run]:
    """The runs of a method, from its ETDump; none where it was never called."""
    if not path.exists():
        return []
    events: list[Any] = [
        event
        for block in blocks_of(path)
        for event in block.events
        if event.is_delegated_op and event.perf_data is not None
    ]
    if not events:
        return []
    kinds = [event.name.partition(" (")[0] for event in events]
    of = layers_of([kind_of(event.name) == "matrices" for event in events], layers)
    return [
        [(kind, 1000 * ms, layer) for kind, ms, layer in zip(kinds, run, of, strict=True)]
        for run in zip(*(event.perf_data.raw for event in events), strict=True)
    ]
