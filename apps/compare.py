"""``edgeloop compare``: a recursive model staged, unrolled, and unrolled on onnxruntime-genai, in one run.

Every decoder reads the same prompt and then writes tokens greedily at full depth. They take turns, so that a
machine that is busy with something else slows all of them; the ratio is taken turn by turn, and its median
is what counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..quant.recipe import Recipe
from ..runtime.errors import UsageError
from .compare_record import save_comparison
from .console import Console, Progress
from .contender import Decoder
from .machine_load import ForeignLoad
from .measure.store import check_folder
from .measure.turns import Effort, Turns, disturbed, take_turns
from .options import at_least
from .quantities import byte_count

if TYPE_CHECKING:
    from ..export.family import Reading

EXAMPLES = """\
examples:
  edgeloop compare --shape mor-360m-r3
  edgeloop compare my-checkpoint --group-size 32 --rounds 20 --json
  edgeloop compare my-checkpoint --target executorch --context 256 --keep programs
  edgeloop compare my-checkpoint --target coreml
  edgeloop compare --target native --group-size 128 32 --prompt-tokens 128 --tokens 64 --keep files
"""

WARM = 2  # tokens of a turn that are not counted: another engine's threads may still spin
REST = 0.1  # seconds before a turn, so that they do not


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint or shape, the target and how many turns."""
    parser.description = (
        "Decode speed and size of a recursive model's bundle, against the same weights unrolled in one int4 ONNX\n"
        "graph, and against onnxruntime-genai on its own builder's int4 model (where it is installed, and takes the\n"
        "model's layers). --target executorch: in both layouts, and unrolled by ExecuTorch's own LLM exporter.\n"
        "--target coreml: the bytes of packages of both.\n"
        "--target native: the lane engine, beside our ONNX engine, onnxruntime-genai and llama.cpp, where installed."
    )
    parser.usage = "edgeloop compare [CHECKPOINT | --shape NAME] [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a checkpoint folder")
    parser.add_argument(
        "--shape", default="mor-360m-r3", help="without one: a random-weight shape (%(default)s)"
    )
    parser.add_argument(
        "--group-size", type=int, nargs="+", default=[32, 128], help="weights that share a scale (32 128)"
    )
    parser.add_argument("--rounds", type=at_least(1), default=12, help="turns of each decoder (%(default)s)")
    parser.add_argument("--tokens", type=at_least(1), default=24, help="counted tokens a turn (%(default)s)")
    parser.add_argument(
        "--prompt-tokens", type=at_least(2), default=32, help="tokens of the prompt (%(default)s)"
    )
    parser.add_argument("--threads", type=at_least(1), default=None, help="threads (all cores)")
    parser.add_argument(
        "--target",
        choices=("onnx", "executorch", "coreml", "native"),
        default="onnx",
        help="target to compare (%(default)s)",
    )
    parser.add_argument("--context", type=at_least(8), help="executorch: a shorter context, as with export")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="executorch, native: keep files in FOLDER, and use those in it",
    )
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=(8, 16, 32),
        default=32,
        help="native: bits of a K/V number (%(default)s)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="native: also its perplexity after each depth"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="write a record of the run into FOLDER, as bench does"
    )


@dataclass(frozen=True)
class Result:
    """A decoder's medians; ``ratio`` is its time a token over the staged bundle's of the same group size, in
    ``interval`` with 95 of 100."""

    name: str
    group_size: int
    bytes: int
    ms: float
    ratio: float
    interval: tuple[float, float]
    bytes_ratio: float


def main(args: argparse.Namespace, console: Console) -> None:
    """Measure the target's peers in turn and print the ratios; EdgeloopError where a peer is not installed."""
    if args.save is not None:
        if args.target == "coreml":
            raise UsageError(
                "--save keeps speeds, and --target coreml measures none; leave it out, or take --json"
            )
        check_folder(args.save)
    ways = {"onnx": decoders, "executorch": programs, "coreml": packages, "native": lanes}
    ways[args.target](args, console)


def lanes(args: argparse.Namespace, console: Console) -> None:
    """The lane engine and its peers."""
    from .compare_native import compare_lanes

    compare_lanes(args, console)


def programs(args: argparse.Namespace, console: Console) -> None:
    """ExecuTorch programs."""
    from .compare_pte import compare_programs

    compare_programs(args, console)


def packages(args: argparse.Namespace, console: Console) -> None:
    """Core ML packages, by their bytes."""
    from ..export.targets import open_target

    target = open_target("coreml")
    from .bench_packages import measure_packages, report_packages

    with tempfile.TemporaryDirectory(prefix="edgeloop-compare-") as scratch, console.progress() as progress:
        _, reading = open_checkpoint(args, Path(scratch), progress)
        target.check(reading.program, Recipe.palettes())
        found = measure_packages(reading, args.group_size, Path(scratch), progress)
    report_packages(console, found)


def open_checkpoint(args: argparse.Namespace, work: Path, progress: Progress) -> tuple[Path, Reading]:
    """The checkpoint that was named, or made in ``work``: its folder, and its reading."""
    from ..export.checkpoint import Checkpoint
    from ..export.families import read_checkpoint
    from ..export.synth import synthesize

    folder = args.checkpoint
    if folder is None:
        progress(f"making {args.shape}", 0.0)
        folder = synthesize(args.shape, work / "checkpoint")
    source = Checkpoint.open(folder)
    return source.folder, read_checkpoint(source)


def decoders(args: argparse.Namespace, console: Console) -> None:
    """Decoders of ONNX graphs, by turns."""
    from ..export.unrolled import unroll
    from ..runtime.decode.encoding import check_encoder
    from .bench_decoders import genai_decoder, staged_decoder, unrolled_decoder

    with tempfile.TemporaryDirectory(prefix="edgeloop-compare-") as scratch, console.progress() as progress:
        work = Path(scratch)
        checkpoint, reading = open_checkpoint(args, work, progress)
        check_encoder(reading.program, checkpoint, False)  # what cannot be is refused before the first export
        unroll(reading)
        prompt = list(range(1, args.prompt_tokens + 1))
        count, load = args.tokens + WARM, ForeignLoad()
        found: list[Decoder] = []
        notes: list[str] = []
        for i, group in enumerate(args.group_size):
            share = 0.6 / len(args.group_size)
            progress(f"group {group}: staged bundle", i * share)
            found.append(staged_decoder(checkpoint, work / f"staged{group}", group, prompt, args.threads))
            progress(f"group {group}: unrolled graph", (i + 0.3) * share)
            found.append(unrolled_decoder(reading, work / f"unrolled{group}", group, prompt, args.threads))
            progress(f"group {group}: onnxruntime-genai's builder", (i + 0.6) * share)
            peer, note = genai_decoder(reading, checkpoint, work, group, prompt, count, args.threads)
            found += [peer] if peer else []
            notes += [note] if note and note not in notes else []
        for folder in (work / "checkpoint", work / "llama"):
            shutil.rmtree(folder, ignore_errors=True)
        times = take_turns(
            {decoder: _turn(decoder, count) for decoder in found},
            float,
            Effort(args.rounds, rest=REST),
            lambda step, fraction: progress(step, 0.6 + 0.4 * fraction),
        )
        shares = {d.group_size: d.host_share() for d in found if d.host_share}
        labels = {decoder: f"{decoder.name}, groups of {decoder.group_size}" for decoder in found}
        saved = save_comparison(
            args,
            work / f"staged{args.group_size[0]}",
            {labels[decoder]: turns for decoder, turns in times.items()},
            {labels[decoder]: f"staged, groups of {decoder.group_size}" for decoder in found},
            float,
            notes,
            load.share(),
        )
    spoilt = disturbed(list(times.values()))
    spoilt = disturbed(list(times.values()))
    report(console, summarize(times), shares, spoilt, notes, saved)


def _turn(decoder: Decoder, count: int) -> Callable[[], float]:
    """A turn of a decoder: milliseconds a token, the median."""
    return lambda: statistics.median(decoder.decode(count)[WARM:])


def summarize(times: dict[Decoder, Turns[float]]) -> list[Result]:
    """Medians of the turns; ratios turn by turn against the staged bundle of the same group size."""
    staged = {d.group_size: d for d in times if d.name == "staged"}
    results = []
    for decoder, turns in times.items():
        base = staged[decoder.group_size]
        ratio = turns.over(times[base], float)
        results.append(
            Result(
                decoder.name,
                decoder.group_size,
                decoder.bytes,
                turns.estimate(float).median,
                ratio.median,
                (ratio.low, ratio.high),
                base.bytes / decoder.bytes,
            )
        )
    return results


def report(
    console: Console,
    results: list[Result],
    shares: dict[int, float],
    spoilt: tuple[int, int],
    notes: list[str],
    saved: dict[str, str],
) -> None:
    """The table, or the same as JSON; ``spoilt``: turns that others disturbed, of how many; ``saved``: the record."""
    if console.json:
        fields = ("name", "group_size", "bytes", "ms", "ratio", "interval", "bytes_ratio")
        rows = [{f: getattr(r, f) for f in fields} for r in results]
        console.result(
            {
                "decoders": rows,
                "host_share": shares,
                "disturbed_turns": spoilt[0],
                "turns": spoilt[1],
                "notes": notes,
                **saved,
            }
        )
        return
    console.table(
        (
            "int4, full depth",
            "#group",
            "#bytes",
            "#bundle ÷ it",
            "#ms a token",
            "#tokens/s",
            "#speed of staged",
            "#interval",
        ),
        [
            (
                r.name,
                str(r.group_size),
                byte_count(r.bytes),
                f"{r.bytes_ratio:.2f}",
                f"{r.ms:.2f}",
                f"{1000 / r.ms:.0f}",
                f"{r.ratio:.2f}×",
                f"{r.interval[0]:.2f} – {r.interval[1]:.2f}",
            )
            for r in results
        ],
    )
    for group, share in shares.items():
        console.note(f"group {group}: the host's own work takes {100 * share:.2f}% of the engine's time")
    if spoilt[0]:
        console.note(f"other programs disturbed {spoilt[0]} of {spoilt[1]} turns: left out where any was not")
    for note in [*notes, *(f"saved as {path}" for path in saved.values())]:
        console.note(note)
