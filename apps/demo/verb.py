"""``edgeloop demo``: export the shipped story model, let it tell a tale, say what that took."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import UsageError
from ...runtime.model.facts import stored_layers
from ...runtime.timing import GenerationStats
from ..console import Console
from ..options import at_least
from ..quantities import bundle_bytes, byte_count, layout, unrolled_bytes, with_target
from ..run import generation, tell

CHECKPOINT = Path(__file__).parent / "checkpoint"
EXAMPLES = """\
examples:
  edgeloop demo
  edgeloop demo -p "The little goblin said" -n 300 --seed 7
  edgeloop demo -o tales --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder, the prompt and the number of tokens."""
    parser.description = (
        "Export the story model that ships with edgeloop, a block of 2 layers run 3 times, quantized to int4; then\n"
        "let it tell a tale and say what that took."
    )
    parser.usage = "edgeloop demo [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("build/demo"),
        metavar="BUNDLE",
        help="where (default: build/demo)",
    )
    parser.add_argument(
        "-p", "--prompt", default="Once upon a time", metavar="TEXT", help="how the tale begins"
    )
    parser.add_argument("-n", "--max-tokens", type=at_least(1), default=200, metavar="N", help="tokens (200)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the sampling (0)")


def main(args: argparse.Namespace, console: Console) -> None:
    """Export the demo to ``args.out``, stream a tale, and print its size and speed."""
    from ...runtime.decode.sampling import SamplingOptions
    from ...runtime.engines.table import ENGINES
    from ...runtime.session import Session

    export(args.out, console)
    sampling = SamplingOptions(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=args.seed)
    with Session.open(args.out) as session:
        tale = session.generate(args.prompt, args.max_tokens, sampling=sampling)
        console.stream(args.prompt)
        steps = tell(tale, console)
        assert session.backend is not None
        manifest = with_target(session.bundle.manifest, ENGINES[session.backend.name].target)
        stats = session.stats
    if console.json:
        sizes = {
            "bundle": str(args.out),
            "bytes": bundle_bytes(manifest),
            "unrolled_bytes_estimated": unrolled_bytes(manifest),
        }
        console.result({**sizes, "prompt": args.prompt, **generation(steps, stats)})
    else:
        console.write("\n")
        console.facts(results(manifest, stats))
        console.write(f"next: edgeloop run {args.out} -p 'The king said' --temperature 0.8\n")


def export(out: Path, console: Console) -> None:
    """Export to the engines that are here, in a process of its own: its memory is not that of running the model."""
    if not CHECKPOINT.is_dir():
        raise UsageError(
            f"{CHECKPOINT} is not there: the demo's checkpoint comes with edgeloop's checkout, not with the installed "
            "package; clone the repository and run make demo there"
        )
    from ...export.targets import TARGETS

    names = ",".join(name for name in ("native", "onnx") if TARGETS[name].available)
    command = [
        sys.executable,
        "-m",
        "edgeloop.apps.cli",
        "export",
        str(CHECKPOINT),
        "-o",
        str(out),
        "--target",
        names or "onnx",
        "--force",
    ]
    if console.json:
        command.append("--json")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def results(manifest: Manifest, stats: GenerationStats) -> list[tuple[str, str]]:
    """The table at the end."""
    program, size, unrolled = manifest.program, bundle_bytes(manifest), unrolled_bytes(manifest)
    rows = [
        (
            "model",
            f"layers {layout(program)}, {stored_layers(program)} stored for {program.applied_layers}",
        ),
        ("bundle", f"{byte_count(size)}, {manifest.quantization.scheme}"),
        ("the same unrolled", f"{byte_count(unrolled)}, {unrolled / size:.1f} times as much (estimated)"),
        ("speed", f"{stats.decode_tokens_per_s:.0f} tokens/s"),
        ("first token", f"{stats.time_to_first_token_ms:.0f} ms"),
    ]
    if stats.peak_rss_bytes is not None:
        rows.append(("peak memory", byte_count(stats.peak_rss_bytes)))
    return rows
