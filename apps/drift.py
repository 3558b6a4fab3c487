"""``edgeloop drift``: how the error of quantization grows from depth to depth, and where it comes from."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..quant.recipe import GROUP_SIZES, RECIPES
from ..runtime.errors import UsageError
from .console import Console
from .intake import read_text
from .options import at_least
from .show import is_bundle

if TYPE_CHECKING:
    from ..export.drift.measure import DepthDrift, Drift
    from ..export.drift.models import Model
    from ..quant.recipe import Recipe

EXAMPLES = """\
examples:
  edgeloop drift checkpoint --quant int8,int4,int4-mixed --text tales.txt
  edgeloop drift checkpoint --quant int4 --recipe mine.toml --text tales.txt --svg drift.svg
  edgeloop drift bundle --against checkpoint --text tales.txt
  edgeloop drift int8-bundle int4-bundle --against float-bundle --engine native --text tales.txt
  edgeloop drift huginn --quant int4 --random 256 --depth 128
"""
WINDOW = 512
TOKENS = 2048
"""Of a window and of the text, by default: the reference engine takes its time."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is compared with what, and on which tokens."""
    parser.description = (
        "Run a text through a model in float and through its quantized twins, and compare the states after every\n"
        "depth: a depth's error is what its own rounding injects, and what it carries on from the depth before.\n"
        "A checkpoint is quantized here, once by each recipe; a bundle is run as it is, beside --against."
    )
    parser.usage = "edgeloop drift PATH [PATH …] (--text FILE | --random N) [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("path", nargs="+", type=Path, metavar="PATH", help="a checkpoint, or bundles")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="the float twin: a checkpoint, or a bundle (default: the checkpoint PATH)",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", metavar="FILE", help="UTF-8 text; - reads stdin")
    given.add_argument(
        "--random", type=at_least(1), metavar="N", help="N random tokens, for a model without a tokenizer"
    )
    parser.add_argument(
        "--max-tokens",
        type=at_least(1),
        default=TOKENS,
        metavar="N",
        help=f"only the first N tokens of the text ({TOKENS})",
    )
    parser.add_argument(
        "--context",
        type=at_least(1),
        metavar="N",
        help=f"tokens of a window ({WINDOW}, or as many as the model takes)",
    )
    parser.add_argument(
        "--depth", type=at_least(1), metavar="N", help="run the block N times, of a model made for any number"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw it, too")
    group = parser.add_argument_group("of a checkpoint")
    group.add_argument(
        "--quant", metavar="NAME,NAME", help=f"recipes: {', '.join(RECIPES)} (default: int8,int4)"
    )
    group.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        default=32,
        help="columns that share a scale (default: 32)",
    )
    group.add_argument(
        "--recipe",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="rules of your own; may be repeated",
    )
    group = parser.add_argument_group("of bundles")
    group.add_argument("--engine", metavar="NAME", help="what runs them (default: native, or else onnx)")
    group.add_argument(
        "--threads", type=at_least(1), metavar="N", help="threads (default: the engine's choice)"
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        default=32,
        choices=(32, 16, 8, 4),
        help="bits of their K/V numbers; the twin's have 32",
    )


def main(args: argparse.Namespace, console: Console) -> None:
    """Print the drift, and draw it; UsageError for what does not go together."""
    from ..export.drift.chart import check_svg, drawing

    if args.svg is not None:
        check_svg(args.svg)
    text = read_text(args.text) if args.text else None

    import numpy as np

    from ..export.drift.measure import check_twins, measure, read_depths
    from ..export.drift.models import encoded

    with ExitStack() as stack:
        console.note("reading the models")
        floats, models = open_models(args, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        for model in (floats, *models):
            stack.callback(model.backend.close)
        program = floats.backend.program
        check_twins(program, [(model.name, model.backend.program) for model in models])
        if text is None:
            ids = np.random.default_rng(0).integers(0, program.vocab_size, args.random)
        else:
            ids = np.asarray(encoded([floats, *models], text, args.max_tokens), np.int64)
        window = min(args.context or WINDOW, program.context_length)
        reads = read_depths(program.depths, floats.trained)
        with console.progress() as progress:
            found = measure(
                floats.backend,
                [(model.name, model.backend) for model in models],
                ids,
                window,
                reads,
                lambda tokens: progress("running", tokens / len(ids)),
            )
        if args.svg is not None:
            args.svg.write_text(drawing(found, floats.trained), encoding="utf-8")
    if console.json:
        settings = {
            "tokens": len(ids),
            "window": window,
            "depths": program.depths,
            "trained_depths": floats.trained,
        }
        console.result({"against": floats.name, **settings, "models": found})
        return
    table(found, reads, console)
    console.note(f"[{len(ids)} tokens, in windows of {window}; relative to {floats.name}]")
    if program.depths > floats.trained or program.loop.open_ended:
        for drift in found:
            console.note(f"[{drift.name}: {verdict(drift)}]")


def open_models(args: argparse.Namespace, folder: Path) -> tuple[Model, list[Model]]:
    """The float twin and what is compared with it; ``folder`` has room for weights."""
    from ..export.drift.models import FLOAT, CheckpointModels, open_bundle

    bundles = [is_bundle(path) for path in args.path]
    if not all(bundles) and len(args.path) > 1:
        raise UsageError("several paths, and not all of them bundles; give one checkpoint, or bundles")
    if not all(bundles):
        chosen = recipes(args)
        made = CheckpointModels(args.path[0], args.depth, folder)
        if args.against is not None:
            raise UsageError("a checkpoint is its own float twin; leave --against out, or give bundles")
        return made.open(FLOAT), [made.open(recipe) for recipe in chosen]
    if args.quant or args.recipe:
        raise UsageError(
            "bundles are quantized already; leave --quant and --recipe out, or give a checkpoint"
        )
    if args.against is None:
        raise UsageError(
            "a bundle needs a float twin; give --against, a checkpoint or an export with --quant none"
        )
    models = [open_bundle(path, args.depth, args.engine, args.threads, args.kv_bits) for path in args.path]
    if is_bundle(args.against):
        floats = open_bundle(args.against, args.depth, args.engine, args.threads, 32)
    else:
        floats = CheckpointModels(args.against, args.depth, folder).open(FLOAT)
    return floats, models


def recipes(args: argparse.Namespace) -> list[Recipe]:
    """The recipes that a checkpoint is quantized by, each once."""
    from ..quant.recipe import Recipe
    from ..quant.recipe_file import read_recipe

    names = (args.quant or ("" if args.recipe else "int8,int4")).split(",")
    named = [Recipe.named(name.strip(), args.group_size) for name in names if name.strip()]
    found = list(dict.fromkeys([*named, *map(read_recipe, args.recipe)]))
    if not found:
        raise UsageError(f"--quant {args.quant!r} names no recipe; choose from {', '.join(RECIPES)}")
    return found


def table(found: list[Drift], reads: list[int], console: Console) -> None:
    """A row for each model and each depth that was read out."""
    columns = "model", "#depths", "#error", "#95%", "#growth", "#injected", "#carried", "#amplified", "#bound"
    rows = []
    for drift in found:
        shown = [each for each in drift.depths if each.depth in (0, *reads)]
        rows += [(drift.name if each.depth == 0 else "", *row(each)) for each in shown]
    console.table((*columns, "#cosine", "#KL", "#flipped"), rows)


def row(found: DepthDrift) -> tuple[str, ...]:
    """A depth as the cells of a row."""
    return (
        str(found.depth),
        percent(found.error),
        percent(found.error_95),
        times(found.growth),
        percent(found.injected),
        percent(found.carried),
        times(found.amplification),
        percent(found.bound),
        f"{found.cosine:.5f}",
        "" if found.kl is None else f"{found.kl:.2g}",
        "" if found.flipped is None else f"{found.flipped:.1%}",
    )


def percent(value: float | None) -> str:
    """A share with three digits."""
    return "" if value is None else f"{100 * value:.3g}%"


def times(value: float | None) -> str:
    """A factor."""
    return "" if value is None else f"{value:.2f}×"


def verdict(drift: Drift) -> str:
    """What the last depth says of those beyond it."""
    last = drift.depths[-1]
    if drift.settles_at is None:
        return f"a depth stretches errors {times(last.amplification)}: they grow with every depth"
    return (
        f"a depth keeps {percent(last.amplification)} of an error and adds {percent(last.injected)}: "
        f"if all depths are like the last it stays below {percent(drift.settles_at)}; it is {percent(last.error)}"
    )
