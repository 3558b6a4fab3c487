"""Setups from flags: those of a command, and those of one contender of ``--compare``."""

from __future__ import annotations

import argparse
import shlex
from typing import NoReturn

from ...runtime.decode.modes import SEQUENTIAL
from ...runtime.errors import UsageError
from ..options import decode_argument, depth_arguments, pinned, session_arguments
from .runner import Setup


class _Words(argparse.ArgumentParser):
    """Complaints say which contender they are about."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(
            f"--compare: {message}; wanted a bundle and flags of `edgeloop run`, such as 'b --engine onnx'"
        )


def setup_of(args: argparse.Namespace) -> Setup:
    """The setup that a command's flags describe; ``--decode all`` is none of them."""
    decode = getattr(args, "decode", None)
    return Setup(
        str(args.bundle),
        args.engine,
        args.threads,
        pinned(args),
        args.kv_bits,
        args.depth,
        args.exit,
        args.skipped_kv,
        args.kv,
        decode if decode not in (None, "all") else SEQUENTIAL,
    )


def setup_of_words(text: str, given: argparse.Namespace) -> Setup:
    """The setup of a contender: ``BUNDLE --engine onnx --threads 1``, in one argument.

    What it leaves out is as ``given``. UsageError names the flag.
    """
    parser = _Words(prog="--compare", add_help=False, allow_abbrev=False)
    session_arguments(parser, needed=False)
    depth_arguments(parser)
    decode_argument(parser)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--compare: {text!r} has a quotation mark without another ({error})") from error
    names = vars(parser.parse_args([]))
    parser.set_defaults(**{name: value for name, value in vars(given).items() if name in names})
    args = parser.parse_args(words)
    if args.bundle is None:
        raise UsageError(f"--compare: {text!r} names no bundle; begin it with one")
    return setup_of(args)
