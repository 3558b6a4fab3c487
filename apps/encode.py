"""``edgeloop encode``: texts through an encoder, to vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .intake import prompt_text, read_text
from .options import at_least, open_session, session_arguments, trust_argument

if TYPE_CHECKING:
    from ..runtime.decode.encoding import Encoded
    from ..runtime.engines.backend import F32

EXAMPLES = """\
examples:
  edgeloop encode bundle -p "The king said nothing." -p "Nobody spoke."
  edgeloop encode bundle --text lines.txt --npy vectors.npy
  edgeloop encode bundle -p "The king said nothing." --pool none --npy states.npy
  edgeloop encode bundle -p "The king said nothing." --depth 6 --json
"""
POOLS = ("mean", "first", "none")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the texts, the pooling and where vectors go."""
    parser.description = (
        "What an encoder makes of texts: the last state of each token, or one vector for each text. --npy writes them\n"
        "to a file for numpy, float32; --json prints them. Special tokens are put around a text as the tokenizer says."
    )
    parser.usage = "edgeloop encode BUNDLE -p TEXT [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    trust_argument(parser)
    parser.add_argument(
        "-p",
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text, - reads stdin; may be repeated",
    )
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text, of which each line is one; - reads stdin")
    parser.add_argument(
        "--depth", dest="after", type=at_least(1), metavar="N", help="stop after N depths (default: all)"
    )
    parser.add_argument(
        "--pool",
        default="mean",
        choices=POOLS,
        help="a text's vector: the mean of its tokens' states, the first one, or none: all states",
    )
    parser.add_argument("--npy", type=Path, metavar="FILE", help="write the vectors to FILE")


def main(args: argparse.Namespace, console: Console) -> None:
    """Print a line a text, or write (texts, D) float32 to ``--npy``; UsageError without a text."""
    import numpy as np

    from ..runtime.timing import Stopwatch

    texts = [prompt_text(text) for text in args.prompt]
    if args.text is not None:
        texts += [line for line in read_text(args.text).splitlines() if line.strip()]
    if not texts:
        raise UsageError("no text to encode; give -p TEXT or --text FILE")
    if args.npy is not None and not args.npy.parent.is_dir():
        raise UsageError(f"--npy {args.npy}: there is no folder {args.npy.parent}; make it first")
    with open_session(args, encoder=True) as session:
        watch, depth = Stopwatch(), args.after or session.program.depths
        # States of many texts take memory, vectors do not.
        step = len(texts) if args.pool == "none" else 64
        parts = [
            session.encode(texts[start : start + step], depth=args.after)
            for start in range(0, len(texts), step)
        ]
        vectors = np.concatenate([pooled(part, args.pool) for part in parts])
        means = np.concatenate([pooled(part, "first" if args.pool == "first" else "mean") for part in parts])
        tokens = [count for part in parts for count in part.tokens.tolist()]
        spent = watch.ms
    if args.npy is not None:
        with args.npy.open("wb") as file:  # np.save would put another ending behind the name
            np.save(file, vectors)
    if console.json:
        rows = [
            vector[:count] if args.pool == "none" else vector
            for vector, count in zip(vectors, tokens, strict=True)
        ]
        written = {} if args.npy is not None else {"vectors": [row.tolist() for row in rows]}
        facts = {"shape": list(vectors.shape), "tokens": tokens, "pool": args.pool, "depth": depth}
        console.result({**facts, **written})
        return
    found = zip(texts, tokens, np.linalg.norm(means, axis=1), strict=True)
    console.table(
        ("text", "#tokens", f"#length of the {'first' if args.pool == 'first' else 'mean'}"),
        [(text[:60], str(count), f"{length:.4f}") for text, count, length in found],
    )
    place = f" in {args.npy}" if args.npy is not None else ""
    shape = " × ".join(map(str, vectors.shape))
    console.note(f"[{shape} float32{place}, after depth {depth}, {spent:.0f} ms]")


def pooled(found: Encoded, pool: str) -> F32:
    """A vector for each text, [B, D]; or all states, [B, S, D]."""
    return {"mean": lambda: found.mean, "first": lambda: found.first, "none": lambda: found.states}[pool]()
