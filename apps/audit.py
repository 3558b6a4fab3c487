"""``edgeloop audit``: checks that every byte of a bundle is accounted for."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import BundleError
from .console import Console
from .quantities import byte_count

EXAMPLES = """\
examples:
  edgeloop audit bundle
  edgeloop audit bundle --json
"""
_SHOWN = 40  # findings; JSON has them all


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle."""
    parser.description = (
        "Account for every byte of every file of a bundle: hashes, tensors, graphs, texts, padding. What the manifest\n"
        "does not account for is listed with its place and size, and is an error. What the numbers of the weights\n"
        "mean is not judged, and XNNPACK's own format is opaque."
    )
    parser.usage = "edgeloop audit BUNDLE [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="bundle folder, made by `edgeloop export`"
    )


def main(args: argparse.Namespace, console: Console) -> None:
    """Print each file's bytes by kind; BundleError when some byte is not accounted for."""
    from ..runtime.audit import OPAQUE, audit

    found = audit(args.bundle)
    total = sum(file.bytes for file in found.files)
    opaque = sum(size for file in found.files for kind, size in file.kinds.items() if kind.endswith(OPAQUE))
    missing = sum(finding.bytes for finding in found.findings)
    if console.json:
        console.result(
            {
                "bundle": str(args.bundle),
                "bytes": total,
                "opaque_bytes": opaque,
                "unaccounted_bytes": missing,
                "files": found.files,
            }
        )
    else:
        rows = [
            (file.file, f"{file.bytes}", ", ".join(f"{kind} {size}" for kind, size in file.kinds.items()))
            for file in found.files
        ]
        console.table(("file", "#bytes", "accounted for"), rows)
        if found.findings:
            places = [(f.file, str(f.start), str(f.bytes), f.what) for f in found.findings[:_SHOWN]]
            console.table(("not accounted for", "#at byte", "#bytes", "what"), places)
    if found.findings:
        raise BundleError(
            f"{args.bundle}: {missing} bytes in {len(found.findings)} places are not accounted for; use a bundle from "
            "somebody you trust, or export it again"
        )
    if not console.json:
        inside = f"; {byte_count(opaque)} of them are opaque" if opaque else ""
        console.write(f"all {total} bytes of {len(found.files)} files are accounted for{inside}\n")
