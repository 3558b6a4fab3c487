"""``edgeloop apply``: an update is applied to a bundle, in one step, or taken back."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import UsageError
from .console import Console
from .options import trust_argument
from .quantities import byte_count

EXAMPLES = """\
examples:
  edgeloop apply bundle bundle.update
  edgeloop apply bundle bundle.update --trust key.pem.pub
  edgeloop apply bundle --back
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the update and the way back."""
    parser.description = (
        "Make of BUNDLE the bundle that UPDATE is for. It is built beside the old one, every byte is checked, then it\n"
        "takes the old one's place in one step; the old one stays as BUNDLE.former. Ended at any time, the bundle is\n"
        "the old or the new one, and the same command goes on."
    )
    parser.usage = "edgeloop apply BUNDLE UPDATE | BUNDLE --back [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument(
        "update", type=Path, nargs="?", metavar="UPDATE", help="file that `edgeloop diff` wrote"
    )
    parser.add_argument(
        "--back", action="store_true", help="the former bundle again; once more: the newer one"
    )
    trust_argument(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    """Apply the update or take it back; EdgeloopError leaves the bundle as it was."""
    from ..runtime.update.apply import apply_update, roll_back

    if args.back == (args.update is not None):
        raise UsageError("give either an update or --back")
    if args.back:
        folder = roll_back(args.bundle, trust=args.trust)
        if console.json:
            console.result({"bundle": str(folder), "back": True})
        else:
            console.write(f"{args.bundle} is the former bundle again; once more --back: the newer one\n")
        return
    with console.progress() as progress:
        done = apply_update(
            args.bundle,
            args.update,
            trust=args.trust,
            progress=lambda share: progress("building the new bundle", share),
        )
    if console.json:
        console.result(
            {
                "bundle": str(done.bundle),
                "former": str(done.former),
                "already": done.already,
                "written_bytes": done.written,
                "kept_bytes": done.kept,
            }
        )
    elif done.already:
        console.write(f"{args.bundle} was that bundle already; its hashes hold\n")
    else:
        console.write(
            f"{args.bundle} is the new bundle: {byte_count(done.written)} were written, {byte_count(done.kept)} are "
            f"those of the old one\nback: edgeloop apply {args.bundle} --back (the old one is {done.former.name})\n"
        )
