"""``edgeloop export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..export.targets import declared_options
from ..quant.recipe import GROUP_SIZES, RECIPES
from ..runtime.errors import UsageError
from ..runtime.timing import peak_rss_bytes
from .console import Console, Progress
from .intake import read_text
from .options import at_least
from .quantities import byte_count, layout, shorter_context, table_bytes
from .show import first_names, quantization

if TYPE_CHECKING:
    from ..export.pipeline import Report

TOKENS, TOKEN_BYTES = 1 << 14, 64
STEP_TOKENS = 1 << 11
"""Of a text that codes are fitted to, tokens that are read, and bytes for each: few have as many."""

EXAMPLES = """\
examples:
  edgeloop export checkpoint -o bundle
  edgeloop export checkpoint -o bundle --quant int8 --group-size 64
  edgeloop export checkpoint -o bundle --quant none --force
  edgeloop export checkpoint -o bundle --recipe mine.toml
  edgeloop export checkpoint -o bundle --codes codes    # what edgeloop quantize made
  edgeloop export checkpoint -o bundle --target executorch --split-weights
  edgeloop export checkpoint --adapter lora-folder -o bundle
  edgeloop export checkpoint -o bundle --target onnx,coreml --coreml-ane
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint, the folder, the storage and every target's options."""
    parser.description = (
        "Turn a checkpoint folder (config.json, *.safetensors) into a bundle that runs anywhere."
    )
    parser.usage = "edgeloop export CKPT -o BUNDLE [options]"
    parser.epilog = EXAMPLES
    checkpoint_arguments(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument(
        "--target", default="onnx", metavar="NAME[,NAME]", help="what to export to (default: onnx)"
    )
    parser.add_argument(
        "--layout",
        default="staged",
        metavar="NAME[,NAME]",
        help="staged: graphs and a loop of the host; flat: one graph, for stock hosts (default: staged)",
    )
    storage_arguments(parser)
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="UTF-8 text that codes are fitted to, 16384 tokens at most; - reads stdin",
    )
    refine_argument(parser, "with --calibrate")
    parser.add_argument(
        "--codes",
        type=Path,
        metavar="DIR",
        help="codes that `edgeloop quantize` fitted, stored as they are, in place of all of these",
    )
    parser.add_argument(
        "--context",
        type=at_least(1),
        metavar="N",
        help="shorten the model's context to N tokens: smaller caches, and smaller tables in a Core ML package",
    )
    parser.add_argument(
        "--kv",
        metavar="POLICY",
        help="per-depth, or shared: depths after the first read its K/V (default: as the model was trained)",
    )
    parser.add_argument(
        "--window",
        type=at_least(1),
        metavar="N",
        help="attention sees the last N tokens only (default: as the model was trained)",
    )
    parser.add_argument(
        "--depth",
        type=at_least(1),
        metavar="N",
        help="the block runs N times unless run says otherwise, of a model made for any number (default: as trained)",
    )
    parser.add_argument(
        "--loop",
        metavar="KIND",
        help="found, or layers: each applied layer is a depth, of a model without a loop as MobileLLM-LS (default: "
        "found)",
    )
    for option in declared_options():
        if isinstance(option.default, bool):
            parser.add_argument(option.flag, action="store_true", help=option.help)
        else:
            parser.add_argument(
                option.flag, type=type(option.default), default=option.default, help=option.help
            )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the bundle (edgeloop sign --new-key)")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it exists")


def checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint and what goes on it."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="checkpoint folder, or the name of a model in the Hugging Face cache",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="a PEFT LoRA on CKPT: a delta for each depth where depths differ",
    )


def storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how matrices are stored."""
    parser.add_argument(
        "--quant",
        choices=list(RECIPES),
        help="how matrices are stored (default: int4); -channel: a scale a row; -mixed: embedding and head in 8 bits; "
        "phone: attention, too",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        help="weights that share a scale (default: 32)",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="rules of your own in TOML, in place of --quant and --group-size",
    )


def refine_argument(parser: argparse.ArgumentParser, when: str) -> None:
    """Declare the training behind the fit."""
    parser.add_argument(
        "--refine",
        type=at_least(1),
        default=0,
        metavar="STEPS",
        help=f"{when}: train codes, scales, norms and deltas so many steps of 2048 tokens, to say after every depth "
        "what the float model says",
    )


def text_bytes(steps: int, tokens: int = TOKENS) -> int:
    """How much of a text is read at most: with what a training of so many ``steps`` reads."""
    return (tokens + (steps + 4) * STEP_TOKENS * (steps > 0)) * TOKEN_BYTES


def main(args: argparse.Namespace, console: Console) -> None:
    """Write the bundle and print its size and parity; EdgeloopError leaves what was at ``args.out``."""
    from ..export.pipeline import export_bundle

    targets, layouts = (
        tuple(filter(None, (name.strip() for name in given.split(","))))
        for given in (args.target, args.layout)
    )
    if args.recipe is not None and (args.quant or args.group_size):
        raise UsageError("--recipe says how every matrix is stored; leave --quant and --group-size away")
    if args.codes is not None and (
        args.quant or args.group_size or args.recipe or args.calibrate is not None or args.refine
    ):
        raise UsageError(
            "--codes have a recipe and a text; leave --quant, --group-size, --recipe, --calibrate and --refine away"
        )
    with console.progress() as progress, interruptible(progress) as step:
        report = export_bundle(
            args.checkpoint,
            args.out,
            adapter=args.adapter,
            targets=targets,
            layouts=layouts,
            quant=args.quant or "int4",
            group_size=args.group_size or 32,
            recipe=args.recipe,
            calibration=None
            if args.calibrate is None
            else read_text(args.calibrate, text_bytes(args.refine)),
            refine=args.refine,
            codes=args.codes,
            context=args.context,
            kv=args.kv,
            window=args.window,
            loop=args.loop,
            depth=args.depth,
            options={option.name: getattr(args, option.name) for option in declared_options()},
            sign=args.sign,
            force=args.force,
            progress=step,
        )
    if console.json:
        console.result(summary(report))
    else:
        describe(report, console)


@contextmanager
def interruptible(progress: Progress) -> Iterator[Progress]:
    """Ctrl-C ends the export: torch's exporter may swallow it or turn it into another error, so it is remembered."""
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def step(name: str, fraction: float) -> None:
        if pressed and fraction < 1:
            raise KeyboardInterrupt
        progress(name, fraction)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield step
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def summary(report: Report) -> dict[str, object]:
    """What was exported, for machines."""
    from .storage import bits_per_weight

    manifest = report.manifest
    return {
        "bundle": str(report.bundle),
        "bytes": report.bundle_bytes,
        "family": manifest.program.family,
        "layout": layout(manifest.program),
        "depths": manifest.program.depths,
        "parameters": manifest.parameters,
        "unrolled_parameters": manifest.unrolled_parameters,
        "quantization": manifest.quantization,
        "bits_per_weight": bits_per_weight(manifest),
        "parity": {name: target.parity for name, target in manifest.targets.items()},
        "unused": report.unused,
        "seconds": report.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def describe(report: Report, console: Console) -> None:
    """What was exported, for people."""
    manifest = report.manifest
    rows = [
        ("bundle", f"{report.bundle}, {byte_count(report.bundle_bytes)}"),
        ("model", f"{manifest.program.family}, layers {layout(manifest.program)}"),
        ("weights", quantization(manifest)),
    ]
    for name, target in manifest.targets.items():
        depths = " ".join(f"{x:.0e}" for x in target.parity.per_depth)
        depths += " after each depth, " if depths else ""
        parity = f"{depths}{target.parity.logits:.0e} of the logits, with float arithmetic"
        if target.parity.shipped != target.parity.logits:
            parity += f"; {target.parity.shipped:.0e} as shipped"
            parity += "" if target.parity.bound is None else f", at most {target.parity.bound:.0e} wanted"
        rows.append((f"{name} parity", parity))
    if report.unused:
        rows.append(("unused tensors", first_names(report.unused)))
    memory = "" if (peak := peak_rss_bytes()) is None else f", {byte_count(peak)} of memory at most"
    rows.append(("time", f"{report.seconds:.1f} s{memory}"))
    console.facts(rows)
    if shorter := shorter_context(manifest):
        context, saved = shorter
        console.note(
            f"{byte_count(table_bytes(manifest))} of the bundle are positions of a context of "
            f"{manifest.program.context_length} tokens: --context {context} would save {byte_count(saved)}"
        )
    console.write(f"{next_step(report)}\n")


RUNS = {
    "native": "",
    "onnx": "",
    "executorch": " --engine executorch",
    "coreml": " --engine coreml-reference",
}
"""What the command line wants to hear to run a target here, by target."""


def next_step(report: Report) -> str:
    """Return the command to try the bundle with, or why there is none for text."""
    manifest, bundle = report.manifest, report.bundle
    engine = next((RUNS[name] for name in RUNS if name in manifest.targets), None)
    if engine is None:  # for other programs' runners only
        return f"next: edgeloop show {bundle}"
    if not manifest.text.tokenizer:
        told = "no tokenizer.json: text needs one beside the checkpoint"
        if manifest.program.encoder:
            return f"{told}; token ids go to Session.encode"
        return f"{told}. next: edgeloop bench {bundle}{engine}"
    if manifest.program.encoder:
        return f"next: edgeloop encode {bundle}{engine} -p 'Once upon a time'"
    return f"next: edgeloop run {bundle}{engine} -p 'Once upon a time' --temperature 0.8"
