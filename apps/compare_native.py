"""``edgeloop compare --target native``: the lane engine beside our ONNX engine, onnxruntime-genai and llama.cpp.

Contenders take turns, each turn in a process of its own, since memory that one has given back is not seen as free. A
turn while other programs took more than a share of the cores is counted and left out. With ``--keep`` files that are
there are used again.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import EngineError, ExportError
from .compare_native_tables import Contender, labels, tables
from .compare_record import save_comparison
from .console import Console, Progress
from .machine import processor, processor_features, usable_threads
from .machine_load import ForeignLoad
from .measure.child import run_child
from .measure.turns import Effort, Turns, disturbed, take_turns
from .quantities import byte_count

if TYPE_CHECKING:
    import argparse

    from ..export.family import Reading
    from ..runtime.bundle.folder import Bundle

PEERS = ("onnxruntime-genai", "llama.cpp Q4_0")
KEYS = ("first_ms", "memory_bytes", "prefill_ms", "token_ms")


def read_bytes(kind: str, path: Path) -> int:
    """Bytes of what an engine reads of the file or folder ``path``."""
    files = path / kind if kind in ("native", "onnx") else path
    if files.is_file():
        return files.stat().st_size
    return sum(file.stat().st_size for file in files.glob("*.onnx*" if kind == "genai" else "*"))


def compare_lanes(args: argparse.Namespace, console: Console) -> None:
    """Export what is missing, measure in turns, and report."""
    kept = nullcontext(str(args.keep)) if args.keep else tempfile.TemporaryDirectory(prefix="edgeloop-lanes-")
    with kept as folder, console.progress() as progress:
        work = Path(folder)
        load = ForeignLoad()
        files, notes = prepare(args, work, progress)
        found = contenders(files, args.threads or usable_threads())
        found = [one for one in found if runs(one, args, notes, progress)]
        turns = take_turns(
            {one: partial(run_turn, one, args) for one in found},
            lambda turn: turn["token_ms"],
            Effort(args.rounds, warm=0),  # they ran when they were tried
            lambda step, fraction: progress(step, 0.6 + 0.4 * fraction),
            lambda one: one.name,
        )
        for one, measured in turns.items():
            for value, foreign in zip(measured.values, measured.foreign, strict=True):
                one.turns.append({**value, "foreign": foreign or 0.0})
        names, ours = labels(found)
        saved = save_comparison(
            args, work / f"bundle{args.group_size[0]}", {names[one]: each for one, each in turns.items()}, ours,
            lambda turn: float(turn["token_ms"]), notes, load.share(),
        )  # fmt: skip
        sizes = {str(group): file_sizes(work / f"bundle{group}") for group in args.group_size}
        perplexity = {}
        for group in args.group_size if args.text else ():
            progress(f"perplexity, groups of {group}", 1.0)
            perplexity[str(group)] = measured_json(
                ["perplexity", str(work / f"bundle{group}"), str(args.text)], {}
            )
    report(console, args, found, sizes, perplexity, notes, saved)


def prepare(
    args: argparse.Namespace, work: Path, progress: Progress
) -> tuple[list[tuple[str, str, Path, int]], list[str]]:
    """(name, kind, path, group size) of every contender's file, and why one is missing."""
    from ..export.checkpoint import Checkpoint
    from ..export.families import read_checkpoint
    from ..export.pipeline import export_bundle
    from ..export.synth import synthesize

    work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.checkpoint or work / "checkpoint"
    if not checkpoint.exists():
        progress(f"making {args.shape}", 0.0)
        synthesize(args.shape, checkpoint)
    source = Checkpoint.open(checkpoint)
    reading, found, notes = read_checkpoint(source), list[tuple[str, str, Path, int]](), []
    for i, group in enumerate(args.group_size):
        bundle = work / f"bundle{group}"
        progress(f"groups of {group}: the bundle", 0.25 * i)
        if not bundle.exists():
            keys: dict[str, Any] = {"quant": "int4", "group_size": group}
            export_bundle(source.folder, bundle, targets=["native", "onnx"], **keys)
        found += [("native", "native", bundle, group), ("ONNX engine", "onnx", bundle, group)]
    peers = [(PEERS[0], "genai", work / f"genai{group}", group) for group in args.group_size]
    for peer in [*peers, (PEERS[1], "llama", work / "q4_0.gguf", 32)]:
        progress(f"{peer[0]}: its file", 0.4)
        try:
            peer_file(peer[1], peer[2], peer[3], reading, source.folder, work)
        except (EngineError, ExportError) as error:
            line = f"{peer[0]} left out: {error}"
            notes += [line] if line not in notes else []
            continue
        found.append(peer)
    shutil.rmtree(work / "llama", ignore_errors=True)
    return found, notes


def peer_file(kind: str, path: Path, group: int, reading: Reading, checkpoint: Path, work: Path) -> None:
    """Make ``path`` unless it is there; EngineError or ExportError where the peer or its maker cannot."""
    from .bench_decoders import llama_checkpoint
    from .bench_genai import GenaiDecoder, need_genai
    from .bench_llama import need_llama, write_gguf

    {"genai": need_genai, "llama": need_llama}[kind]()
    if path.exists():
        return
    unrolled = llama_checkpoint(reading, checkpoint, work)
    if kind == "genai":
        GenaiDecoder.prepare(unrolled, path, group)
    else:
        write_gguf(unrolled, path)


def contenders(files: list[tuple[str, str, Path, int]], threads: int) -> list[Contender]:
    """Every file with ``threads`` threads and with one; ours with AVX2 too, where better kernels are the usual ones."""
    from ..runtime.engines.native.library import kernels

    found, sized = [], [(*file, read_bytes(*file[1:3])) for file in files]
    for number in dict.fromkeys((threads, 1)):
        found += [Contender(*file, number) for file in sized]
        if kernels() == "avx512":
            found += [Contender(*file, number, "avx2") for file in sized if file[1] == "native"]
    return found


def runs(one: Contender, args: argparse.Namespace, notes: list[str], progress: Progress) -> bool:
    """Whether it runs; its files are in memory then. EngineError where it is one of ours that does not."""
    progress(f"opening {one.name}", 0.5)
    try:
        run_turn(one, args)
    except EngineError as error:
        if one.name not in PEERS:
            raise
        notes.append(f"{one.name} with {one.threads} threads left out: {error}")
        return False
    return True


def run_turn(one: Contender, args: argparse.Namespace) -> dict[str, Any]:
    """One turn of a contender."""
    kv_bits = args.kv_bits if one.kind == "native" else 32
    numbers = (one.threads, args.prompt_tokens, args.tokens, kv_bits)
    kernels = {"EDGELOOP_KERNELS": one.kernels} if one.kernels else {}
    return measured_json([one.kind, str(one.path), *map(str, numbers)], kernels)


def measured_json(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What the process says; EngineError with its last words when it fails."""
    return run_child(words[0], "bench_native", words, environment)


def file_sizes(folder: Path) -> dict[str, float]:
    """Of a bundle: bytes of the lane engine's file over those of the stored tensors, and what a token reads and
    multiplies."""
    from safetensors import safe_open

    from ..runtime.bundle.folder import Bundle

    bundle = Bundle.open(folder, verify=False)
    targets = bundle.manifest.targets
    with safe_open(str(bundle.path(targets["onnx"].weights)), "numpy") as file:
        tensors = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 - no dict
    lanes = bundle.path(targets["native"].weights).stat().st_size
    return {"file_ratio": lanes / tensors, **work_of_a_token(bundle)}


def work_of_a_token(bundle: Bundle) -> dict[str, float]:
    """Bytes of matrices that a decoded token reads, and multiplications and additions of one within a prompt."""
    from ..runtime.model.ops import Linear

    program, said = bundle.program, bundle.manifest.quantization
    a_number = said.bits / 8 + (2 / said.group_size if said.group_size else 0)

    def numbers(ops: tuple[Any, ...]) -> int:
        linears = [op for op in ops if isinstance(op, Linear)]
        parts = [
            (program.matrix(op.weight), list(program.matrix(op.weight).parts.values())[op.first :], op)
            for op in linears
        ]
        return sum(matrix.columns * sum(rows[: len(op.y)]) for matrix, rows, op in parts)

    blocks = [program.stage("block", depth).ops for depth in range(program.depths)]
    body = sum(numbers(ops) for ops in (program.prologue.ops, *blocks, program.epilogue.ops))
    return {"token_bytes": (body + numbers(program.head.ops)) * a_number, "token_ops": 2.0 * body}


def counted(one: Contender) -> Turns[dict[str, Any]]:
    """Its turns, with what disturbed them."""
    return Turns(one.turns, [turn["foreign"] for turn in one.turns])


def summary(one: Contender) -> dict[str, Any]:
    """Medians of the turns that nothing disturbed, or of all where there is none."""
    turns, calm = counted(one).kept, counted(one).calm
    speeds = sorted(1000 / turn["token_ms"] for turn in turns)
    rows = {n: statistics.median(turn["pass_ms"][n] for turn in turns) for n in turns[0]["pass_ms"]}
    return {
        "name": one.name + (f", {one.kernels}" if one.kernels else ""),
        "kind": one.kind,
        "group_size": one.group,
        "threads": one.threads,
        "kernels": one.kernels,
        "bytes": one.bytes,
        **{key: statistics.median(turn[key] for turn in turns) for key in KEYS},
        "token_ms_turns": [turn["token_ms"] for turn in turns],
        "tokens_per_s": [speeds[0], statistics.median(speeds), speeds[-1]],
        "pass_ms": rows,
        "turns": len(calm),
    }


def against_peers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of our rows over the best of the peers with as many threads: speeds of decoding and prefill, and memory."""
    found = []
    for row in (r for r in rows if r["kind"] == "native"):
        peers = [r for r in rows if r["name"] in PEERS and r["threads"] == row["threads"]]
        ours = [r for r in rows if r["kind"] == "onnx" and r["threads"] == row["threads"]]
        ours = [r for r in ours if r["group_size"] == row["group_size"]]
        best = {key: min(r[key] for r in peers) for key in KEYS} if peers else {}
        names = {key: row[key] for key in ("name", "group_size", "threads")}
        ratios = {key: row[key] / value for key, value in best.items()}
        found.append({**names, **ratios, "onnx_token_ms": row["token_ms"] / ours[0]["token_ms"]})
    return found


def report(
    console: Console,
    args: argparse.Namespace,
    found: list[Contender],
    sizes: dict[str, dict[str, float]],
    perplexity: dict[str, dict[str, list[float]]],
    notes: list[str],
    saved: dict[str, str],
) -> None:
    """The tables, or the same as JSON; ``saved``: the record."""
    from ..runtime.engines.native.build import LIBRARY

    rows = [summary(one) for one in found]
    machine = f"{processor()}: {', '.join(processor_features())}"
    spoilt, turns = disturbed([counted(one) for one in found])
    if console.json:
        console.result(
            {
                "processor": machine,
                "contenders": rows,
                "ratios": against_peers(rows),
                "sizes": sizes,
                "perplexity": perplexity,
                "library_bytes": LIBRARY.stat().st_size,
                "disturbed_turns": spoilt,
                "turns": turns,
                "notes": notes,
                **saved,
            }
        )
        return
    tables(console, args.prompt_tokens, rows, against_peers(rows), sizes, perplexity)
    console.facts(
        [
            ("processor", machine),
            ("library", byte_count(LIBRARY.stat().st_size)),
            ("turns", f"{turns}, of which others' programs disturbed {spoilt}"),
        ]
    )
    for note in [*notes, *(f"saved as {path}" for path in saved.values())]:
        console.note(note)
