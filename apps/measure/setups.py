"""Setups from flags: those of a command, and those of one contender of ``--compare``."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import NoReturn

from ...runtime.decode.modes import SEQUENTIAL
from ...runtime.errors import UsageError
from ..options import decode_argument, depth_arguments, pinned, session_arguments
from .commits import PREFIX
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


@dataclass(frozen=True)
class Contender:
    """A setup; ``commit``: of the edgeloop that runs it, None for this one."""

    setup: Setup
    commit: str | None = None


def contender_of_words(text: str, given: argparse.Namespace) -> Contender:
    """A contender: ``BUNDLE --engine onnx --threads 1``, or ``commit:REVISION`` before that, in one argument.

    What it leaves out, the bundle too, is as ``given``. UsageError names the flag.
    """
    parser = _Words(prog="--compare", add_help=False, allow_abbrev=False)
    session_arguments(parser, needed=False)
    depth_arguments(parser)
    decode_argument(parser)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--compare: {text!r} has a quotation mark without another ({error})") from error
    commit = words.pop(0).removeprefix(PREFIX) if words and words[0].startswith(PREFIX) else None
    names = vars(parser.parse_args([]))
    parser.set_defaults(**{name: value for name, value in vars(given).items() if name in names})
    args = parser.parse_args(words)
    if args.bundle is None:
        before = "" if commit is None else "; a bundle before --compare is that of all commits"
        raise UsageError(f"--compare: {text!r} names no bundle; begin it with one{before}")
    return Contender(setup_of(args), commit)
