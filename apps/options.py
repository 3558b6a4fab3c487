"""The flags that several verbs share, checked as they are parsed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import UsageError
from .intake import read_objects, word

if TYPE_CHECKING:
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.session import Session


def at_least(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below ``smallest``, nor above ``largest`` if there is one."""
    wanted = f"of {smallest} or more" if largest is None else f"from {smallest} to {largest}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number {wanted}")
        return value

    return parse


def positive(unit: str) -> Callable[[str], float]:
    """An argparse type: a number of ``unit`` above 0."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} above 0")
        return value

    return parse


def number_list(what: str, least: int = 1) -> Callable[[str], list[int]]:
    """An argparse type: numbers of ``what`` with commas between them, each ``least`` or more."""

    def parse(text: str) -> list[int]:
        parts = text.split(",")
        fine = all(part.isdecimal() and part.isascii() and len(part) <= 9 for part in parts)
        if not fine or min(map(int, parts)) < least:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not numbers of {what} with commas, each {least} or more, as 128,512"
            )
        return [int(part) for part in dict.fromkeys(parts)]

    return parse


def processors(text: str) -> tuple[int, ...]:
    """An argparse type: numbers of processors with commas between them."""
    parts = text.split(",")
    if not all(part.isdecimal() and part.isascii() and len(part) <= 4 for part in parts):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not numbers of processors, as 0,2")
    return tuple(map(int, parts))


def session_arguments(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """Which bundle, if one is ``needed``, and what runs it."""
    parser.add_argument(
        "bundle",
        type=Path,
        nargs=None if needed else "?",
        metavar="BUNDLE",
        help="bundle folder, made by `edgeloop export`",
    )
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        metavar="NAME",
        help="what runs the model (default: native where bundle and computer have it, else onnx)",
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        default=32,
        choices=(32, 16, 8, 4),
        help="bits of a K/V number (default: 32; engine native: 16, 8 and 4 take 1/2, 1/4 and 1/6 of the memory)",
    )
    group.add_argument(
        "--threads", type=at_least(1), metavar="N", help="threads (default: the engine's choice)"
    )
    group.add_argument(
        "--cpus",
        type=processors,
        default=(),
        metavar="N,N",
        help="pin threads to these processors, in turn; as many threads as processors (engine native)",
    )
    group.add_argument(
        "--context",
        type=at_least(1),
        metavar="N",
        help="tokens the KV cache holds (default: the model's context)",
    )


def trust_argument(parser: argparse.ArgumentParser) -> None:
    """Whose signature is wanted."""
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="PUBKEY",
        help="refuse what the key of this PEM file did not sign (edgeloop sign)",
    )


def depth_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """When a token stops, and what that means for its K/V. The default is what the model was trained for.

    ``several``: rules and policies for skipped K/V are lists.
    """
    group = parser.add_argument_group("depth")
    group.add_argument(
        "--depth",
        type=at_least(1),
        metavar="N",
        help="run the block N times, of a model made for any number (default: as trained)",
    )
    action, again = ("append", "; may be repeated") if several else ("store", "")
    group.add_argument(
        "--exit",
        action=action,
        metavar="RULE",
        help="never, depth:N, confidence:X, margin:X, entropy:X, kl:X, entropy-diff:X, stable:N, latent:X, gate:X, "
        "probe:X; router, chunk-topk" + again,
    )
    group.add_argument(
        "--skipped-kv",
        action=action,
        metavar="POLICY",
        help="K/V of tokens that left: exact, propagate, latest, shared, skip" + again,
    )
    group.add_argument("--kv", metavar="POLICY", help="KV slots: per-depth, shared, last, last-2, last-4")


def decode_argument(parser: argparse.ArgumentParser) -> None:
    """How the depths of neighbouring tokens are run."""
    parser.add_argument(
        "--decode",
        metavar="HOW",
        help="sequential; pipelined: depths of neighbouring tokens in one call, the same text sooner (default: "
        "pipelined with engine native, where that pays; else sequential)",
    )


def session_file_argument(parser: argparse.ArgumentParser) -> None:
    """Where the context is kept between calls."""
    parser.add_argument(
        "--session",
        type=_file_to_save,
        metavar="FILE",
        help="go on from the context in FILE, if it is there, and save it to FILE after every answer",
    )


def _file_to_save(text: str) -> Path:
    """Return the path ``text``, if it can name a file: checked before an answer is made that could not be saved."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to save in; make it first")
    return path


def template_arguments(parser: argparse.ArgumentParser) -> None:
    """What a chat template gets beside the messages."""
    group = parser.add_argument_group("chat template")
    group.add_argument(
        "--tools",
        metavar="FILE",
        help="a JSON list of functions (schemas) that the model may call",
    )
    group.add_argument(
        "--documents", metavar="FILE", help="a JSON list of objects to answer from, often title and text"
    )
    group.add_argument(
        "--template",
        type=word,
        metavar="NAME",
        help="one of several (default: default, or tool_use with --tools)",
    )
    group.add_argument(
        "--thinking",
        choices=("show", "hide"),
        help="whether what a model thinks before it answers (<think> … </think>) is shown, on stderr (default: show)",
    )


def template_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that ``template_arguments`` describe, as ``encode_chat`` takes them."""
    return {
        "tools": read_objects("tools", args.tools),
        "documents": read_objects("documents", args.documents),
        "template": args.template,
    }


def pinned(args: argparse.Namespace) -> tuple[int, ...]:
    """Return the processors of ``--cpus``, with this thread, which computes too, put onto the first of them."""
    if args.cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, args.cpus[:1])
        except OSError as error:
            raise UsageError(
                f"this process may not use processor {args.cpus[0]} ({error.strerror}); give other --cpus"
            ) from error
    cpus: tuple[int, ...] = args.cpus
    return cpus


def open_session(args: argparse.Namespace, encoder: bool = False) -> Session:
    """The session that ``session_arguments``, and the other two above if the verb has them, describe.

    UsageError where it is of an encoder, or of none if the verb is for an ``encoder``.
    """
    from ..runtime.decode.encoding import check_encoder
    from ..runtime.session import Session

    session = Session.open(
        args.bundle,
        engine=args.engine,
        threads=args.threads,
        cpus=pinned(args),
        kv_bits=args.kv_bits,
        context=args.context,
        depth=getattr(args, "depth", None),
        exit=getattr(args, "exit", None),
        skipped_kv=getattr(args, "skipped_kv", None),
        kv=getattr(args, "kv", None),
        decode=getattr(args, "decode", None),
        trust=getattr(args, "trust", None),
    )
    check_encoder(session.program, args.bundle, encoder)
    return session


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="0, the default, takes the likeliest token",
    )
    group.add_argument(
        "--top-k", type=at_least(0), default=0, metavar="N", help="only the N likeliest; 0: all"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="only the likeliest that sum to X"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="X",
        help="only those at least X times as likely as the likeliest",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1, tokens of prompt and answer become less likely again",
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtract X from the logits of tokens that the answer has",
    )
    group.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtract X for each time that the answer has the token",
    )
    group.add_argument(
        "--logit-bias",
        action="append",
        type=token_bias,
        default=[],
        metavar="TOKEN=X",
        help="add X to the logit of a token, given by its id or its text; -inf bans it; may be repeated",
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="the same seed, the same text"
    )
    group.add_argument(
        "--stop",
        action="append",
        type=word,
        default=[],
        metavar="STR",
        help="end before this text, or at this special token; may be repeated",
    )


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """The options that ``sampling_arguments`` describe."""
    from ..runtime.decode.sampling import SamplingOptions

    return SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(args.logit_bias),
    )


def token_bias(text: str) -> tuple[int | str, float]:
    """An argparse type: ``TOKEN=X``. TOKEN is an id if it is a whole number; text may stand in double quotes."""
    token, equals, number = word(text).rpartition("=")
    try:
        bias = float(number)
    except ValueError:
        equals = ""
    if not (token and equals):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not TOKEN=X, as in 42=-1.5 or ' the=2'")
    if token.isascii() and token.isdigit():
        return int(token), bias
    quoted = len(token) > 2 and token[0] == token[-1] == '"'
    return token[1:-1] if quoted else token, bias
