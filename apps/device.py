"""``edgeloop device``: the profiles that ``predict`` knows, and one of the computer that this runs on."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import UsageError
from .console import Console
from .machine import processor

EXAMPLES = """\
examples:
  edgeloop device list
  edgeloop device show raspberry-pi-5
  edgeloop device measure -o mine.toml && edgeloop predict bundle --device mine.toml
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is done, the profile, and the file."""
    parser.description = (
        "Profiles of processors: what they read and multiply a second. `measure` makes one of this computer in\n"
        "less than a minute, with the lane engine itself; nothing else should run meanwhile."
    )
    parser.usage = "edgeloop device list | show NAME|FILE | measure -o FILE [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("what", choices=("list", "show", "measure"), help="what to do")
    parser.add_argument("device", nargs="?", metavar="NAME|FILE", help="with show: which profile")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="with measure: the TOML file to write")
    parser.add_argument("--name", metavar="TEXT", help="with measure: its name (default: the processor's)")
    parser.add_argument("--force", action="store_true", help="with measure: replace FILE if it exists")


def main(args: argparse.Namespace, console: Console) -> None:
    """List the profiles, show one, or measure this computer."""
    if (args.what == "show") != (args.device is not None):
        raise UsageError("`device show` takes the name or the file of a profile, and nothing else does")
    if (args.what == "measure") != (args.out is not None):
        raise UsageError("`device measure` takes -o FILE, and nothing else does")
    {"list": _list, "show": _show, "measure": _measure}[args.what](args, console)


def _list(args: argparse.Namespace, console: Console) -> None:
    from .predicting.device import device, named

    profiles = {name: device(name) for name in named()}
    if console.json:
        console.result({"devices": profiles})
        return
    columns = (
        "name",
        "chip",
        "#cores",
        "#memory, GB",
        "#cache, MB",
        "#reads, GB/s",
        "#int8, GOP/s",
        "#sustained",
    )
    rows = [
        (name, one.chip, str(one.cores), f"{one.memory_gb:g}", f"{one.cache_mb:g}", f"{one.read_gb_s.all:g}",
         f"{one.int8_gops.all:g}", f"{one.sustained:.0%}")
        for name, one in profiles.items()
    ]  # fmt: skip
    console.table(columns, rows)


def _show(args: argparse.Namespace, console: Console) -> None:
    from .predicting.device import FIGURES, Rate, device

    one = device(args.device)
    if console.json:
        console.result({"device": one, "derived": one.derived})
        return
    console.facts([("name", one.name), ("chip", one.chip)])
    rows = []
    for name in FIGURES:
        value = getattr(one, name)
        said = f"{value.one:g} / {value.all:g}" if isinstance(value, Rate) else f"{value:g}"
        rows.append((name, said, one.sources[name]))
    console.table(("figure", "#one core / all", "source"), rows)


def _measure(args: argparse.Namespace, console: Console) -> None:
    from .machine_load import ForeignLoad
    from .predicting.device import written
    from .predicting.measure import measured

    if args.out.exists() and not args.force:
        raise UsageError(f"{args.out} exists: choose another file or pass --force to replace it")
    if not args.out.parent.is_dir():
        raise UsageError(f"{args.out.parent} is no folder; choose another file")
    load = ForeignLoad()
    with console.progress() as progress:
        found = measured(progress, args.name or processor())
    share = load.share()
    text = written(found)
    fresh = args.out.with_name(f"{args.out.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(args.out)
    if console.json:
        console.result({"file": str(args.out), "device": found, "foreign_load": share})
        return
    console.write(text)
    if share is not None and share > 0.05:
        console.note(
            f"other programs took {share:.0%} of the processor meanwhile: the rates are too low; measure again"
        )
    console.note(f"[written to {args.out}]")
