"""One program in a process of its own: time until its first logits, memory, and milliseconds a token or a pass.

    python -m edgeloop.apps.bench_pte staged|onnx|flat|exporter PATH PROMPT_TOKENS TOKENS
    python -m edgeloop.apps.bench_pte methods BUNDLE

A process each, because memory that one program has given back is not seen as free, and because engines keep packed
weights for a next program of the same process.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..runtime.engines.backend import F32
from ..runtime.timing import Stopwatch, rss_bytes
from .console import Console
from .measure.tokens import ms_of, times_of
from .measure.turns import Effort, take_turns

Next = Callable[[list[int], int], F32]
"""Tokens and the position of the first → logits [V] of the last one."""


def _bundle(engine: str) -> Callable[[Path], Callable[[], Next]]:
    """A bundle on one of our engines, by the depth loop."""

    def open_bundle(path: Path) -> Callable[[], Next]:
        from ..runtime.bundle.folder import Bundle
        from ..runtime.decode.sequential import SequentialDecoder
        from ..runtime.engines.table import open_backend

        def load() -> Next:
            backend = open_backend(engine, Bundle.open(path, verify=False))
            decoder = SequentialDecoder(backend, backend.new_cache(1, backend.program.context_length))

            def step(ids: list[int], start: int) -> F32:
                if start == 0:
                    decoder.reset()
                found: F32 = decoder.prompt(np.array(ids))[-1]
                return found

            return step

        return load

    return open_bundle


def _flat(path: Path) -> Callable[[], Next]:
    """A program with one forward, on the wheel's runtime."""
    from ..export.targets.executorch.flat_program import FlatProgram

    return lambda: FlatProgram(path).logits


def _exporter(path: Path) -> Callable[[], Next]:
    """The same, with the operators of ExecuTorch's LLM exporter."""
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401  # both register their operators

    return _flat(path)


KINDS: dict[str, Callable[[Path], Callable[[], Next]]] = {
    "staged": _bundle("executorch"),
    "onnx": _bundle("onnx"),
    "flat": _flat,
    "exporter": _exporter,
}


def measure(load: Callable[[], Next], prompt: int, tokens: int) -> dict[str, object]:
    """``load_ms`` until the first logits, ``memory_bytes`` that came with the program, ``ms`` a token (median)."""
    before, watch = rss_bytes() or 0, Stopwatch()
    step = load()
    step([1], 0)
    load_ms = watch.ms
    token, position = int(step(list(range(1, prompt + 1)), 0).argmax()), prompt

    def next_one() -> None:
        nonlocal token, position
        token, position = int(step([token], position).argmax()), position + 1

    times = times_of(next_one, tokens)
    return {
        "load_ms": load_ms,
        "memory_bytes": (rss_bytes() or 0) - before,
        "ms": statistics.median(times),
        "last": token,
    }


def measure_methods(path: Path, passes: int = 15) -> dict[str, object]:
    """Of a staged bundle: memory with one method loaded and with all, and milliseconds of a pass of 1 … R rows.

    A row is a sequence of its own with 32 tokens behind it; numbers of rows take turns.
    """
    from ..runtime.bundle.folder import Bundle
    from ..runtime.engines.backend import Lanes
    from ..runtime.engines.executorch.engine import ExecutorchBackend

    before = rss_bytes() or 0
    backend = ExecutorchBackend.open(Bundle.open(path, verify=False))
    program, shapes = backend.program, backend.layout.shapes
    cache = backend.new_cache(shapes.rows, 64)

    def run(rows: int) -> float:
        ones, depths = np.ones(rows, np.int32), np.arange(rows) % program.depths
        lanes = Lanes(depths, 32 * ones, ones, np.full((rows, 1), 32))
        state = np.ones((rows, 1, program.width), np.float32)
        return ms_of(lambda: backend.block(state, lanes, cache))

    run(1)
    one = (rss_bytes() or 0) - before
    names = [name for kind in shapes.kinds(program) for name, *_ in shapes.methods(kind)]
    for name in names:
        backend.bridge.method(name)
    every = (rss_bytes() or 0) - before
    turns = take_turns(
        {rows: partial(run, rows) for rows in range(1, shapes.rows + 1)}, float, Effort(passes)
    )
    return {
        "methods": len(names),
        "one_bytes": one,
        "all_bytes": every,
        "pass_ms": [turn.estimate(float).median for turn in turns.values()],
    }


def main(argv: list[str]) -> None:
    """Measure what ``argv`` names; the result is JSON."""
    kind, path, *counts = argv
    if kind == "methods":
        found = measure_methods(Path(path))
    else:
        found = measure(KINDS[kind](Path(path)), *(int(count) for count in counts))
    Console(json=True).result(found)


if __name__ == "__main__":
    main(sys.argv[1:])
