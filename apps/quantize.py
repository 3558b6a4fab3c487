"""``edgeloop quantize``: codes fitted to a text, in a folder that ``edgeloop export --codes`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..quant.recipe import Recipe
from ..runtime.errors import UsageError
from ..runtime.timing import peak_rss_bytes
from .console import Console
from .export import (
    TOKENS,
    checkpoint_arguments,
    interruptible,
    refine_argument,
    storage_arguments,
    text_bytes,
)
from .intake import read_text
from .options import at_least
from .quantities import byte_count

if TYPE_CHECKING:
    from ..export.quantize import Outcome
    from ..export.refine.train import Refined

EXAMPLES = """\
examples:
  edgeloop quantize checkpoint --text tales.txt -o codes
  edgeloop quantize checkpoint --text tales.txt --quant int4-mixed --group-size 128 -o codes
  edgeloop quantize checkpoint --text tales.txt --recipe mine.toml --tokens 65536 -o codes
  edgeloop quantize checkpoint --text tales.txt --refine 300 -o codes
  edgeloop export checkpoint --codes codes -o bundle
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint, the text, the storage and the folder."""
    parser.description = (
        "Fit the codes of a checkpoint's matrices to a text: the model reads it layer by layer, at every depth, and\n"
        "each matrix gets the codes with which its outputs are least wrong. Ended at any time, the same command goes\n"
        "on from the matrices that are finished; they lie in CODES.partial meanwhile."
    )
    parser.usage = "edgeloop quantize CKPT --text FILE -o CODES [options]"
    parser.epilog = EXAMPLES
    checkpoint_arguments(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="CODES", help="folder to write")
    storage_arguments(parser)
    parser.add_argument(
        "--tokens",
        type=at_least(2),
        default=TOKENS,
        metavar="N",
        help="only the first N tokens of the text (default: 16384); memory and time grow with them",
    )
    refine_argument(parser, "then")
    parser.add_argument(
        "--depth",
        type=at_least(1),
        metavar="N",
        help="as of export, and so is what follows: the block runs N times",
    )
    parser.add_argument("--loop", metavar="KIND", help="found, or layers: each applied layer is a depth")
    parser.add_argument("--force", action="store_true", help="replace CODES if it exists")


def main(args: argparse.Namespace, console: Console) -> None:
    """Write the codes; EdgeloopError leaves what was at ``args.out``."""
    if args.recipe is not None and (args.quant or args.group_size):
        raise UsageError("--recipe says how every matrix is stored; leave --quant and --group-size away")
    from ..quant.recipe_file import read_recipe

    recipe = (
        read_recipe(args.recipe) if args.recipe else Recipe.named(args.quant or "int4", args.group_size or 32)
    )
    text = read_text(args.text, text_bytes(args.refine, args.tokens))
    from ..export.quantize import quantize_checkpoint

    with console.progress() as progress, interruptible(progress) as step:
        outcome = quantize_checkpoint(
            args.checkpoint,
            text,
            args.out,
            recipe=recipe,
            adapter=args.adapter,
            tokens=args.tokens,
            refine=args.refine,
            depth=args.depth,
            loop=args.loop,
            force=args.force,
            progress=step,
        )
    tell_outcome(outcome, args, console)


def training(refined: Refined, steps: int) -> str:
    """What training has gained, in thousandths of a nat."""
    before, after = (
        ", ".join(f"{1000 * each:.2f}" for each in side) for side in (refined.before, refined.after)
    )
    kept = "" if refined.gained else "; that is no gain, so the codes are those that were fitted"
    where = f"KL after each depth, of {refined.held} tokens that were held back"
    return f"{steps} steps: {where}, {before} → {after} · 10⁻³{kept}"


def tell_outcome(outcome: Outcome, args: argparse.Namespace, console: Console) -> None:
    """What was made, of what, and what it took."""
    about = outcome.codes.about
    refined, peak = outcome.refined, peak_rss_bytes()
    if console.json:
        console.result(
            {
                "codes": str(outcome.folder),
                "bytes": outcome.bytes,
                "recipe": about.recipe.name,
                "matrices": len(about.matrices),
                "resumed": outcome.resumed,
                "tokens": about.tokens,
                "steps": about.steps,
                "divergence_before": None if refined is None else refined.before,
                "divergence_after": None if refined is None else refined.after,
                "seconds": outcome.seconds,
                "peak_rss_bytes": peak,
            }
        )
        return
    resumed = f", {outcome.resumed} of them by an earlier run" if outcome.resumed else ""
    memory = "" if peak is None else f", {byte_count(peak)} of memory at most"
    console.facts(
        [
            ("codes", f"{outcome.folder}, {byte_count(outcome.bytes)}"),
            ("matrices", f"{len(about.matrices)} as {about.recipe.name} says{resumed}"),
            ("text", f"{about.tokens} tokens"),
            *([] if refined is None else [("training", training(refined, args.refine))]),
            ("time", f"{outcome.seconds:.1f} s{memory}"),
        ]
    )
    adapter = f" --adapter {args.adapter}" if args.adapter else ""
    console.write(f"next: edgeloop export {args.checkpoint}{adapter} --codes {outcome.folder} -o bundle\n")
