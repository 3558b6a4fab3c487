"""One contender of ``edgeloop compare --target native`` in a process of its own: its speeds and its memory as JSON.

    python -m edgeloop.apps.bench_native native|onnx|genai|llama PATH THREADS PROMPT_TOKENS TOKENS KV_BITS
    python -m edgeloop.apps.bench_native perplexity BUNDLE TEXT

Memory is the largest that was resident until the last token, less what was resident when everything had been imported:
Python's share is in neither side of a comparison, nor are the code pages of a peer's library.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..runtime.engines.backend import Backend, Lanes
from ..runtime.timing import Stopwatch, peak_rss_bytes, rss_bytes
from .console import Console
from .measure.tokens import ms_of, times_of
from .measure.turns import Effort, take_turns

ROWS = (1, 2, 3, 4, 8)
FIRST = [1, 2]
"""The prompt until whose first token a contender is opened; onnxruntime-genai takes none of one token."""
READS, PASSES, WARM = 3, 20, 4


@dataclass(frozen=True)
class Opened:
    """A contender that has read ``FIRST``: ``read`` gives the milliseconds of a prompt, ``decode`` of each token."""

    read: Callable[[list[int]], float]
    decode: Callable[[int], list[float]]
    backend: Backend | None = None


Load = Callable[[], Opened]


def _bundle(engine: str, modules: tuple[str, ...]) -> Callable[[Path, int, int, int], Load]:
    """A bundle on one of our engines, token by token as a session decodes without drafts."""

    def prepare(path: Path, threads: int, capacity: int, kv_bits: int) -> Load:
        from ..runtime.bundle.folder import Bundle
        from ..runtime.decode.sampling import SamplingOptions
        from ..runtime.decode.sequential import SequentialDecoder
        from ..runtime.engines.table import open_backend

        for module in modules:
            importlib.import_module(module, __package__)

        def load() -> Opened:
            backend = open_backend(engine, Bundle.open(path, verify=False), threads, kv_bits=kv_bits)
            decoder = SequentialDecoder(backend, backend.new_cache(1, capacity))
            by_engine = decoder.choose_by(SamplingOptions())
            last = 0

            def read(ids: list[int]) -> float:
                nonlocal last
                decoder.reset()
                watch = Stopwatch()
                last = int(decoder.prompt(np.array(ids))[-1].argmax())
                return watch.ms

            def step() -> None:
                nonlocal last
                last = decoder.next(last) if by_engine else int(decoder.step(last)[-1].argmax())

            def decode(count: int) -> list[float]:
                return times_of(step, count)

            read(FIRST)
            return Opened(read, decode, backend)

        return load

    return prepare


def _genai(path: Path, threads: int, capacity: int, kv_bits: int) -> Load:
    """onnxruntime-genai on its builder's model."""
    from .bench_genai import GenaiDecoder

    importlib.import_module("onnxruntime_genai")

    def load() -> Opened:
        peer = GenaiDecoder(path, FIRST, capacity, threads)
        return Opened(peer.read_ms, peer.decode_ms)

    return load


def _llama(path: Path, threads: int, capacity: int, kv_bits: int) -> Load:
    """llama.cpp on a GGUF."""
    from .bench_llama import LlamaDecoder

    importlib.import_module("llama_cpp")

    def load() -> Opened:
        peer = LlamaDecoder(path, capacity, threads)
        peer.read_ms(FIRST)
        return Opened(peer.read_ms, peer.decode_ms)

    return load


KINDS: dict[str, Callable[[Path, int, int, int], Load]] = {
    "native": _bundle("native", ("..runtime.engines.native.engine",)),
    "onnx": _bundle("onnx", ("onnxruntime", "..runtime.engines.onnx.engine")),
    "genai": _genai,
    "llama": _llama,
}


def measure(load: Load, prompt: int, tokens: int) -> dict[str, object]:
    """``first_ms`` until the first token of a short prompt, ``prefill_ms``, ``token_ms`` (medians), ``memory_bytes``,
    ``pass_ms`` of a block with so many rows (ours only)."""
    forget_peak()
    before, watch = rss_bytes() or 0, Stopwatch()
    opened = load()
    first_ms, ids = watch.ms, list(range(1, prompt + 1))
    prefill = take_turns({"prefill": partial(opened.read, ids)}, float, Effort(READS))["prefill"]
    token = opened.decode(tokens + WARM)[WARM:]
    memory = (peak_rss_bytes() or 0) - before
    return {
        "first_ms": first_ms,
        "prefill_ms": prefill.estimate(float).median,
        "token_ms": statistics.median(token),
        "memory_bytes": memory,
        "pass_ms": block_passes(opened.backend, min(prompt, 128)) if opened.backend else {},
    }


def forget_peak() -> None:
    """Let the largest resident memory begin anew: importing may have had more. Nothing where Linux is not."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def block_passes(backend: Backend, cached: int) -> dict[str, float]:
    """Milliseconds of a block call by its rows: one token each, at depth after depth, ``cached`` tokens behind it.

    Nothing of models whose depths share K/V: their calls take no such rows.
    """
    program, most = backend.program, ROWS[-1]
    if program.shares_kv:
        return {}
    cache, random = backend.new_cache(most, cached + 1), np.random.default_rng(0)
    depths, ones = np.arange(most) % program.depths, np.ones(most, np.int32)

    def call(rows: int, behind: int, new: int) -> float:
        positions = np.tile(np.arange(behind, behind + new), (rows, 1))
        lanes = Lanes(depths[:rows], behind * ones[:rows], new * ones[:rows], positions)
        state = random.standard_normal((rows, new, program.width)).astype(np.float32)
        return ms_of(lambda: backend.block(state, lanes, cache))

    call(most, 0, cached)
    turns = take_turns(
        {str(rows): partial(call, rows, cached, 1) for rows in ROWS}, float, Effort(PASSES, warm=WARM)
    )
    return {rows: turn.estimate(float).median for rows, turn in turns.items()}


def perplexities(path: Path, text: Path) -> dict[str, list[float]]:
    """The perplexity after each depth on the lane engine, by what its matrices' inputs are rounded to."""
    from ..runtime.bundle.folder import Bundle
    from ..runtime.engines.native.engine import NativeBackend
    from ..runtime.engines.native.library import Activations
    from ..runtime.session import Session

    bundle, found = Bundle.open(path), {}
    weights = bundle.path(bundle.manifest.targets["native"].weights)
    for activations in Activations:
        with Session(bundle, NativeBackend(bundle.program, weights, activations=activations)) as session:
            ids = session.tokenizer.encode(text.read_text(encoding="utf-8"))
            found[activations.name.lower()] = list(session.perplexity(ids).perplexity_per_depth)
    return found


def main(argv: list[str]) -> None:
    """Measure what ``argv`` names; the result is JSON."""
    kind, path, *rest = argv
    if kind == "perplexity":
        Console(json=True).result(perplexities(Path(path), Path(rest[0])))
        return
    threads, prompt, tokens, kv_bits = (int(number) for number in rest)
    load = KINDS[kind](Path(path), threads, prompt + tokens + WARM + 1, kv_bits)
    Console(json=True).result(measure(load, prompt, tokens))


if __name__ == "__main__":
    main(sys.argv[1:])
