"""``edgeloop diff``: an update, the file that makes of an old bundle a new one."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import Console
from .quantities import byte_count

EXAMPLES = """\
examples:
  edgeloop diff bundle bundle-2 -o bundle.update
  edgeloop diff bundle bundle-2 -o bundle.update --sign key.pem
  edgeloop apply bundle bundle.update
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two bundles and the file."""
    parser.description = (
        "Write what NEW has that OLD lacks, with how NEW is put together of the two: new deltas cost their own bytes.\n"
        "Where OLD is, `edgeloop apply` or the C interface makes NEW of it."
    )
    parser.usage = "edgeloop diff OLD NEW -o UPDATE [options]"
    parser.epilog = EXAMPLES
    parser.add_argument("old", type=Path, metavar="OLD", help="bundle folder, as it is on the devices")
    parser.add_argument("new", type=Path, metavar="NEW", help="bundle folder, as it is to be")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="UPDATE", help="file to write")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign it (edgeloop sign --new-key)")


def main(args: argparse.Namespace, console: Console) -> None:
    """Write the update and print what of each file is in it."""
    from ..runtime.bundle.signature import SigningKey
    from ..runtime.update.diff import make_update

    key = SigningKey.read(args.sign) if args.sign else None
    made = make_update(args.old, args.new, args.out, key)
    if console.json:
        files = {name: {"bytes": size, "new_bytes": new} for name, (size, new) in made.changed.items()}
        console.result(
            {
                "update": str(made.path),
                "bytes": made.bytes,
                "old_bytes": made.old_bytes,
                "new_bytes": made.new_bytes,
                "signed": key is not None,
                "changed": files,
            }
        )
        return
    rows = [(name, f"{size}", f"{new}") for name, (size, new) in sorted(made.changed.items())]
    console.table(("changed file", "#bytes", "#in the update"), rows)
    console.write(
        f"{made.path}: {byte_count(made.bytes)} in place of {byte_count(made.new_bytes)}"
        f"{', signed' if key else ''}\nnext, where {args.old} is: edgeloop apply {args.old} {made.path}\n"
    )
