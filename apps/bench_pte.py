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
from pathlib import Path

import numpy as np

from ..runtime.engines.backend import F32
from ..runtime.timing import Stopwatch
from .console import Console

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
    before, watch = resident_bytes(), Stopwatch()
    step = load()
    step([1], 0)
    load_ms = watch.ms
    logits, times = step(list(range(1, prompt + 1)), 0), []
    token = int(logits.argmax())
    for i in range(tokens):
        watch = Stopwatch()
        token = int(step([token], prompt + i).argmax())
        times.append(watch.ms)
    return {
        "load_ms": load_ms,
        "memory_bytes": resident_bytes() - before,
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

    before = resident_bytes()
    backend = ExecutorchBackend.open(Bundle.open(path, verify=False))
    program, shapes = backend.program, backend.layout.shapes
    cache = backend.new_cache(shapes.rows, 64)

    def run(rows: int) -> float:
        ones, depths = np.ones(rows, np.int32), np.arange(rows) % program.depths
        lanes = Lanes(depths, 32 * ones, ones, np.full((rows, 1), 32))
        watch = Stopwatch()
        backend.block(np.ones((rows, 1, program.width), np.float32), lanes, cache)
        return watch.ms

    run(1)
    one = resident_bytes() - before
    names = [name for kind in shapes.kinds(program) for name, *_ in shapes.methods(kind)]
    for name in names:
        backend.bridge.method(name)
    every = resident_bytes() - before
    counts = range(1, shapes.rows + 1)
    times = [[run(rows) for rows in counts] for _ in range(passes + 1)][1:]
    return {
        "methods": len(names),
        "one_bytes": one,
        "all_bytes": every,
        "pass_ms": [statistics.median(turn) for turn in zip(*times, strict=True)],
    }


def resident_bytes() -> int:
    """Memory of this process that is resident; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()


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
