"""``edgeloop sensitivity``: what codes cost each matrix at every depth, and a recipe of bits where they count."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .intake import read_text
from .options import at_least
from .quantities import count

if TYPE_CHECKING:
    from ..quant.recipe import Recipe
    from ..quant.sensitivity import Sensitivity

EXAMPLES = """\
examples:
  edgeloop sensitivity checkpoint --text tales.txt
  edgeloop sensitivity checkpoint --text tales.txt --bits 4.6 -o mine.toml
  edgeloop export checkpoint -o bundle --recipe mine.toml --calibrate tales.txt
"""
BITS = 4.6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint, the text, the budget and the file."""
    parser.description = (
        "What 4 bits (in groups of 128 and 32) and 8 bits (a scale a row) cost each matrix, measured: the others stay\n"
        "floats, a text is read, and the divergence of the next token's distribution is taken after every depth. The\n"
        "recipe has the least sum of them within a budget of bits a weight, scales included."
    )
    parser.usage = "edgeloop sensitivity CKPT --text FILE [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="checkpoint folder")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument(
        "--bits", type=_bits, default=BITS, metavar="X", help=f"bits a weight of all matrices ({BITS})"
    )
    parser.add_argument("--max-tokens", type=at_least(2), metavar="N", help="tokens of the text (1024)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the recipe there, as TOML")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _bits(text: str) -> float:
    value = float(text)
    if not 0 < value <= 32:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 … 32")
    return value


def main(args: argparse.Namespace, console: Console) -> None:
    """Print what each matrix costs and gets, and write the recipe; UsageError for a budget that is too small, or a file
    that is there."""
    from ..export.sensitive import TOKENS, sensitivity
    from ..quant.recipe_file import recipe_text
    from ..quant.sensitivity import choose

    if args.out is not None:
        if args.out.exists() and not args.force:
            raise UsageError(f"{args.out} exists; give another name or --force")
        if not args.out.parent.is_dir():  # asked now, not after minutes
            raise UsageError(
                f"there is no folder {args.out.parent} to write {args.out.name} to; make it first"
            )
    text = read_text(args.text)
    with console.progress() as progress:
        found = sensitivity(args.checkpoint, text, args.max_tokens or TOKENS, progress)
    recipe = choose(found, args.bits, "measured")
    if args.out is not None:
        partial = args.out.with_name(f".{args.out.name}.partial")
        partial.write_text(
            recipe_text(recipe, f"edgeloop sensitivity --bits {args.bits:g}"), encoding="utf-8"
        )
        os.replace(partial, args.out)
    spent = bits_a_weight(found, recipe)
    if console.json:
        console.result({"matrices": summary(found, recipe), "bits_per_weight": spent, "recipe": recipe})
        return
    columns = ("matrix", "#weights", *(f"#{option.storage}" for option in found[0].options), "gets")
    rows = [
        (
            each.name,
            count(each.weights),
            *(" ".join(f"{1000 * nats:.2f}" for nats in option.divergence) for option in each.options),
            str(recipe.storage(each.parts[0])),
        )
        for each in found
    ]
    console.table(columns, rows)
    console.note(f"[divergence after each depth, 10⁻³ nats; the recipe has {spent:.3f} bits a weight]")
    if args.out is not None:
        console.write(
            f"next: edgeloop export {args.checkpoint} -o bundle --recipe {args.out} --calibrate {args.text}\n"
        )


def bits_a_weight(found: Sequence[Sensitivity], recipe: Recipe) -> float:
    """What the matrices take under ``recipe``, scales included."""
    bits = sum(
        next(option.bits for option in each.options if option.storage == recipe.storage(each.parts[0]))
        for each in found
    )
    return bits / sum(each.weights for each in found)


def summary(found: Sequence[Sensitivity], recipe: Recipe) -> list[dict[str, object]]:
    """The matrices, for machines."""
    return [
        {
            "name": each.name,
            "weights": each.weights,
            "options": [
                {
                    "storage": str(option.storage),
                    "bits": option.bits,
                    "divergence_per_depth": option.divergence,
                }
                for option in each.options
            ],
            "gets": str(recipe.storage(each.parts[0])),
        }
        for each in found
    ]
