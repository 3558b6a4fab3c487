"""``edgeloop compare --target executorch``: staged, the same on ONNX Runtime, flat, and ExecuTorch's own LLM exporter.

Each export takes minutes, so with ``--keep`` what is there is used again. Measuring takes turns, each decoder in a
process of its own.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import ExportError
from .compare_record import save_comparison
from .console import Console, Progress
from .machine_load import ForeignLoad
from .measure.child import run_child
from .measure.turns import Effort, Turns, take_turns
from .quantities import byte_count

if TYPE_CHECKING:
    import argparse

    from ..export.family import Reading

FOLDERS = {"staged": "executorch", "onnx": "onnx"}
COLUMNS = ("8da4w, full depth", "#bytes", "#load", "#memory", "#ms a token", "#tokens/s", "#speed of staged")


def compare_programs(args: argparse.Namespace, console: Console) -> None:
    """Export what is missing, measure in turns, and report."""
    kept = nullcontext(str(args.keep)) if args.keep else tempfile.TemporaryDirectory(prefix="edgeloop-pte-")
    with kept as folder, console.progress() as progress:
        load = ForeignLoad()
        programs, notes = prepare(args, Path(folder), progress)
        turns = take_turns(
            {
                name: partial(measured, name, path, args.prompt_tokens, args.tokens)
                for name, path in programs.items()
            },
            lambda turn: turn["ms"],
            Effort(args.rounds, warm=0),  # each turn is a process, which warms up by itself
            lambda step, fraction: progress(step, 0.8 + 0.2 * fraction),
            str,
        )
        rows = [
            summary(name, size(name, path), turns[name], turns["staged"]) for name, path in programs.items()
        ]
        saved = save_comparison(
            args,
            programs["staged"],
            turns,
            dict.fromkeys(turns, "staged"),
            lambda turn: turn["ms"],
            notes,
            load.share(),
        )
        methods: dict[str, Any] = measured("methods", programs["staged"])
    if console.json:
        console.result({"decoders": rows, "methods": methods, "notes": notes, **saved})
        return
    console.table(COLUMNS, [cells(row) for row in rows])
    console.facts(
        [
            ("memory of one method", byte_count(methods["one_bytes"])),
            (f"of all {methods['methods']}", byte_count(methods["all_bytes"])),
            ("a pass of 1, 2, … rows", " ".join(f"{ms:.2f}" for ms in methods["pass_ms"]) + " ms"),
        ]
    )
    for note in [*notes, *(f"saved as {path}" for path in saved.values())]:
        console.note(note)


def prepare(args: argparse.Namespace, work: Path, progress: Progress) -> tuple[dict[str, Path], list[str]]:
    """The contenders' files by name, and why one is missing."""
    from ..export.checkpoint import Checkpoint
    from ..export.families import read_checkpoint
    from ..export.overrides import overridden
    from ..export.pipeline import export_bundle
    from ..export.synth import synthesize

    work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.checkpoint
    if checkpoint is None:
        checkpoint = work / "checkpoint"
        if not checkpoint.exists():
            progress(f"making {args.shape}", 0.0)
            synthesize(args.shape, checkpoint)
    source = Checkpoint.open(checkpoint)
    reading: Reading = overridden(read_checkpoint(source), args.context, None, None)
    group, found, notes = args.group_size[0], {}, []
    for i, layout in enumerate(("staged", "flat")):
        progress(f"{layout}: this takes minutes", 0.25 * i)
        found[layout] = work / layout
        if not found[layout].exists():
            keys: dict[str, Any] = {"quant": "int4", "group_size": group, "context": args.context}
            export_bundle(checkpoint, work / layout, targets=["executorch"], layouts=[layout], **keys)
    found["onnx"] = work / "onnx"
    if not found["onnx"].exists():
        export_bundle(checkpoint, work / "onnx", quant="int4", group_size=group, context=args.context)
    found["flat"] = found["flat"] / "executorch-flat" / "model.pte"
    progress("executorch's own exporter: this takes minutes", 0.5)
    try:
        found["exporter"] = exporter_program(
            reading, work / "exporter", group, reading.program.context_length
        )
    except ExportError as error:
        notes.append(f"executorch's own exporter left out: {error}")
    return found, notes


def exporter_program(reading: Reading, folder: Path, group: int, context: int) -> Path:
    """What ExecuTorch's exporter makes of the unrolled model, once."""
    from ..export.targets.executorch.llama import PROGRAM, export_llama

    folder.mkdir(exist_ok=True)
    path = folder / PROGRAM
    return path if path.exists() else export_llama(reading, folder, group, context)


def measured(name: str, path: Path, *counts: int) -> dict[str, float]:
    """One turn; EngineError with the process's last words when it fails."""
    return run_child(name, "bench_pte", [name, str(path), *map(str, counts)])


def size(name: str, path: Path) -> int:
    """Bytes of a contender's program, or of the folder of a bundle that has it."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in (path / FOLDERS[name]).iterdir())


def summary(
    name: str, size: int, turns: Turns[dict[str, float]], staged: Turns[dict[str, float]]
) -> dict[str, Any]:
    """Medians of a contender's turns; the speed turn by turn against the staged bundle."""
    medians = {
        key: turns.estimate(lambda turn, key=key: turn[key]).median  # type: ignore[misc]
        for key in ("load_ms", "memory_bytes", "ms")
    }
    speed = staged.over(turns, lambda turn: turn["ms"])
    return {
        "name": name,
        "bytes": size,
        **medians,
        "speed": speed.median,
        "speed_interval": [speed.low, speed.high],
        "disturbed": turns.disturbed,
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    return (
        {"exporter": "executorch's exporter"}.get(row["name"], row["name"]),
        byte_count(row["bytes"]),
        f"{row['load_ms']:.0f} ms",
        byte_count(row["memory_bytes"]),
        f"{row['ms']:.2f}",
        f"{1000 / row['ms']:.0f}",
        f"{row['speed']:.2f}×",
    )
