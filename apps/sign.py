"""``edgeloop sign``: signs a bundle or an update, and makes the keys for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.errors import UsageError
from .console import Console

EXAMPLES = """\
examples:
  edgeloop sign --new-key key.pem                  # and key.pem.pub, which --trust takes
  edgeloop sign bundle --key key.pem
  edgeloop sign bundle.update --key key.pem
  edgeloop run bundle --trust key.pem.pub -p "Once upon a time"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is signed and the key."""
    parser.description = (
        "Sign a bundle or an update with an Ed25519 key, or make such a key. A signed bundle has two files more,\n"
        "SHA256SUMS and SHA256SUMS.sig, which sha256sum and openssl read too."
    )
    parser.usage = "edgeloop sign BUNDLE|UPDATE --key KEY | --new-key KEY [options]"
    parser.epilog = EXAMPLES
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        metavar="BUNDLE|UPDATE",
        help="bundle folder, or file of `edgeloop diff`",
    )
    parser.add_argument("--key", type=Path, metavar="KEY", help="PEM file with the private key")
    parser.add_argument(
        "--new-key",
        type=Path,
        metavar="KEY",
        help="write a new key to this file, and its public half to KEY.pub",
    )


def main(args: argparse.Namespace, console: Console) -> None:
    """Make the key, or sign; UsageError for flags that do not go together."""
    from ..runtime.bundle.folder import Bundle
    from ..runtime.bundle.signature import SigningKey, TrustedKey, sign_bundle
    from ..runtime.update.sign import sign_update

    if (args.new_key is None) == (args.path is None) or (args.path is None) != (args.key is None):
        raise UsageError("give what to sign and --key, or --new-key alone")
    if args.new_key is not None:
        SigningKey.make(args.new_key)
        public = Path(f"{args.new_key}.pub")
        if console.json:
            raw = TrustedKey.read(public).raw.hex()
            console.result({"private": str(args.new_key), "public": str(public), "public_hex": raw})
        else:
            console.write(f"{args.new_key}: keep it to yourself\n{public}: for --trust, give it away\n")
        return
    key = SigningKey.read(args.key)
    if not args.path.exists():
        raise UsageError(f"{args.path} does not exist; give a bundle's folder, or an update")
    if args.path.is_dir():
        bundle = Bundle.open(args.path)
        sign_bundle(bundle.folder, bundle.manifest, key)
    else:
        sign_update(args.path, key)
    if console.json:
        console.result({"signed": str(args.path)})
    else:
        console.write(f"{args.path} is signed\n")
