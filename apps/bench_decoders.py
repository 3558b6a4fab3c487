"""The contenders of ``edgeloop compare``, each behind the same two numbers: bytes, and milliseconds a token."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..export.family import Reading
from ..export.pipeline import export_bundle
from ..export.unrolled import WEIGHTS, plain_llama, write_unrolled_checkpoint, write_unrolled_graph
from ..quant.recipe import Recipe
from ..runtime.bundle.folder import Bundle
from ..runtime.context.context import CACHE_STEP
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.engines.backend import I64, Lanes
from ..runtime.engines.kv import KVCache
from ..runtime.engines.onnx.engine import OnnxBackend
from ..runtime.engines.onnx.session import GraphSession, default_threads, use_threads
from ..runtime.errors import EngineError, ExportError
from ..runtime.timing import Stopwatch
from .bench_genai import GenaiDecoder
from .contender import Decoder
from .measure.tokens import times_of

TOKENIZER_CONFIG = '{"tokenizer_class": "PreTrainedTokenizerFast"}'


def staged_decoder(
    checkpoint: Path, out: Path, group_size: int, prompt: Sequence[int], threads: int | None
) -> Decoder:
    """A bundle of ``checkpoint``, decoded by the depth loop."""
    report = export_bundle(checkpoint, out, quant="int4", group_size=group_size)
    bundle = Bundle.open(out)
    graphs = bundle.manifest.targets["onnx"].graphs
    backend = OnnxBackend(bundle.program, {n: bundle.path(p) for n, p in graphs.items()}, threads=threads)
    decoder = SequentialDecoder(backend, backend.new_cache(1, CACHE_STEP))
    spent = {"host": 0, "engine": 0}

    def decode(count: int) -> list[float]:
        decoder.reset()
        logits = decoder.prompt(np.array(prompt))

        def step() -> None:
            nonlocal logits
            logits = decoder.prompt(logits[-1:].argmax(-1))

        engine, turn = backend.engine_ns, Stopwatch()
        times = times_of(step, count)
        spent["engine"] += backend.engine_ns - engine
        spent["host"] += int(1e6 * turn.ms) - (backend.engine_ns - engine)
        return times

    files = report.manifest.files
    size = sum(file.bytes for name, file in files.items() if name.startswith("onnx/"))
    return Decoder("staged", group_size, size, decode, lambda: spent["host"] / spent["engine"])


def unrolled_decoder(
    reading: Reading, folder: Path, group_size: int, prompt: Sequence[int], threads: int | None
) -> Decoder:
    """One graph of the same weights with every applied layer stored, on the same onnxruntime and thread pool."""
    folder.mkdir()
    program, graph = write_unrolled_graph(reading, Recipe.named("int4", group_size), folder)
    use_threads(threads)
    session = GraphSession("prologue", "logits", graph, program)
    cache = KVCache.allocate(program, 1, CACHE_STEP)

    def step(ids: I64, lanes: Lanes) -> int:
        plan = session.plan(lanes, 1, cache)
        plan.ids[0] = ids
        plan.rows[0] = len(ids) - 1
        return int(session.run(plan)[0].argmax())

    first, next_one = Lanes.single(0, 0, len(prompt), 0), Lanes.single(0, 0, 1, 0)

    def decode(count: int) -> list[float]:
        token, position = step(np.array(prompt), first), len(prompt)

        def following() -> None:
            nonlocal token, position
            next_one.cached[0] = next_one.positions[0, 0] = position
            next_one.refresh()
            token, position = step(np.array([token]), next_one), position + 1

        return times_of(following, count)

    size = graph.stat().st_size + (folder / WEIGHTS).stat().st_size
    return Decoder("unrolled", group_size, size, decode)


def llama_checkpoint(reading: Reading, tokenizer: Path, work: Path) -> Path:
    """The unrolled checkpoint in ``work`` that peers are built from, made once; ExportError for what is no Llama."""
    checkpoint = work / "llama"
    plain_llama(reading.program, "its builder")
    if not checkpoint.exists():
        checkpoint.mkdir()
        write_unrolled_checkpoint(reading, checkpoint)
        shutil.copyfile(tokenizer / "tokenizer.json", checkpoint / "tokenizer.json")
        (checkpoint / "tokenizer_config.json").write_text(TOKENIZER_CONFIG, encoding="utf-8")
    return checkpoint


def genai_decoder(
    reading: Reading,
    tokenizer: Path,
    work: Path,
    group_size: int,
    prompt: Sequence[int],
    tokens: int,
    threads: int | None,
) -> tuple[Decoder | None, str]:
    """onnxruntime-genai on its builder's model of the same unrolled checkpoint; (None, why) where it cannot run."""
    try:
        checkpoint = llama_checkpoint(reading, tokenizer, work)
        folder = GenaiDecoder.prepare(checkpoint, work / f"genai{group_size}", group_size)
        peer = GenaiDecoder(folder, prompt, tokens, threads or default_threads())
    except (EngineError, ExportError) as error:
        return None, f"onnxruntime-genai left out: {error}"
    return Decoder("onnxruntime-genai", group_size, peer.model_bytes, peer.decode_ms), ""
