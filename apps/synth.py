"""``edgeloop synth``: a random-weight checkpoint of a real shape, to size and time a design before training it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .options import at_least
from .quantities import byte_count

if TYPE_CHECKING:
    from ..export.synth_shapes import Shape

EXAMPLES = """\
examples:
  edgeloop synth --list
  edgeloop synth --shape mor-360m-r3 -o checkpoint
  edgeloop synth --shape mor-360m-r3 --lora-rank 64 -o checkpoint && edgeloop export checkpoint -o bundle
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shape, the folder, the seed and the type of the weights."""
    parser.description = (
        "Write a checkpoint with random weights in the shape of a published model. It babbles, but it weighs,\n"
        "exports and runs like the real one."
    )
    parser.usage = "edgeloop synth --shape NAME -o CKPT [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("--list", action="store_true", help="name the shapes and stop")
    parser.add_argument("--shape", metavar="NAME", help="which shape")
    parser.add_argument("-o", "--out", type=Path, metavar="CKPT", help="folder to write")
    parser.add_argument(
        "--lora-rank", type=at_least(0), default=0, metavar="N", help="per-depth LoRA (MoR shapes)"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N")
    parser.add_argument("--force", action="store_true", help="replace CKPT if it exists")


def main(args: argparse.Namespace, console: Console) -> None:
    """Write random weights in a named shape, or list the shapes; UsageError for a name that is none."""
    from ..export.synth_shapes import SHAPES

    if args.list:
        list_shapes(SHAPES, console)
        return
    if args.shape is None or args.out is None:
        raise UsageError("--shape and -o are needed, or --list (see `edgeloop synth --help`)")
    if args.shape not in SHAPES:  # asked before torch is imported
        raise UsageError(f"no shape named {args.shape!r}; choose one of {', '.join(SHAPES)}")
    from ..export.synth import synthesize

    console.note(f"writing random weights in the shape of {args.shape}")
    synthesize(
        args.shape, args.out, seed=args.seed, dtype=args.dtype, force=args.force, lora_rank=args.lora_rank
    )
    size = sum(path.stat().st_size for path in args.out.iterdir() if path.is_file())
    if console.json:
        console.result({"checkpoint": str(args.out), "shape": args.shape, "bytes": size})
    else:
        console.facts([("checkpoint", str(args.out)), ("shape", args.shape), ("bytes", byte_count(size))])
        console.write(f"next: edgeloop export {args.out} -o bundle\n")


def list_shapes(shapes: Mapping[str, Shape], console: Console) -> None:
    """The named shapes and their sizes."""
    if console.json:
        console.result({"shapes": {name: asdict(shape) for name, shape in shapes.items()}})
        return
    rows = [
        (
            name,
            shape.family,
            f"{len(set(shape.stored_layers))} stored, {shape.applied_layers} applied",
            str(shape.hidden_size),
            f"{shape.heads}/{shape.kv_heads}",
            str(shape.vocab_size),
        )
        for name, shape in shapes.items()
    ]
    console.table(("shape", "family", "layers", "#width", "#heads/KV", "#vocabulary"), rows)
