"""``edgeloop eval``: perplexity on a text, at full depth and at every depth before it."""

from __future__ import annotations

import argparse

from ..runtime.errors import UsageError
from .console import Console
from .options import at_least, open_session, read_text, session_arguments

EXAMPLES = """\
examples:
  edgeloop eval bundle --text tales.txt
  edgeloop eval bundle --text tales.txt --max-tokens 4096 --context 512
  edgeloop eval bundle --text tales.txt --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "How well the model predicts a text: exp of the mean loss of a token, in windows of the context. The\n"
        "depths before the last show what stopping there would cost."
    )
    parser.usage = "edgeloop eval BUNDLE --text FILE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument(
        "--max-tokens", type=at_least(2), metavar="N", help="only the first N tokens of the text"
    )


def main(args: argparse.Namespace, console: Console) -> None:
    from ..runtime.timing import Stopwatch, peak_rss_bytes

    text = read_text(args.text)
    with open_session(args) as session:
        ids = session.tokenizer.encode(text)[: args.max_tokens]
        if len(ids) < 2:
            raise UsageError(f"{args.text} has {len(ids)} tokens; perplexity needs at least 2")
        console.note(f"predicting {len(ids) - 1} tokens, in windows of {session.context}")
        watch = Stopwatch()
        found = session.perplexity(ids)
        speed, depths = 1000 * found.tokens / watch.ms, session.spec.depths
    if console.json:
        console.result(
            {
                "perplexity": found.perplexity,
                "perplexity_per_depth": found.perplexity_per_depth,
                "tokens": found.tokens,
                "mean_depth": float(depths),
                "tokens_per_s": speed,
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
        return
    rows = [
        (f"{depth} of {depths}", f"{perplexity:.3f}")
        for depth, perplexity in enumerate(found.perplexity_per_depth, 1)
    ]
    console.table(("#depth", "#perplexity"), rows)
    console.note(f"[{found.tokens} tokens, {speed:.0f} tokens/s]")
