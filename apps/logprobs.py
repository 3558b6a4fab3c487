"""Log-probabilities of tokens for people and for machines: ``--logprobs`` and ``--prompt-logprobs``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .options import at_least

if TYPE_CHECKING:
    from ..runtime.decode.logprobs import Score, TokenLogprob, TokenLogprobs
    from ..runtime.serve.requests import Step
    from ..runtime.text.tokenizer import Tokenizer
    from .console import Console

Entries = list[dict[str, Any] | None]


def logprobs_argument(parser: argparse.ArgumentParser) -> None:
    """How likely the model found each token of an answer."""
    parser.add_argument(
        "--logprobs",
        type=at_least(0),
        metavar="N",
        help="the log-probability of each token, and of the N likeliest in its place",
    )


def tell_answer(steps: Iterable[Step], tokenizer: Tokenizer, console: Console) -> Entries:
    """Return the log-probabilities of each step for ``--json``; for a person they are a table on stdout."""
    return _tell([(step.token, step.logprobs) for step in steps], tokenizer, console)


def tell_score(score: Score, tokenizer: Tokenizer, console: Console) -> Entries:
    """As ``tell_answer``, for each token of a text; None for the first, which nothing predicts."""
    return _tell(list(zip(score.ids, score.tokens, strict=True)), tokenizer, console)


def _with_top(found: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    return {**_entry(found, tokenizer), "top_logprobs": [_entry(one, tokenizer) for one in found.top]}


def _entry(found: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as OpenAI's API names its parts, with its id; ``bytes`` may be a part of a character only."""
    piece = tokenizer.pieces[found.token]
    return {
        "id": found.token,
        "token": piece.decode(errors="replace"),
        "bytes": list(piece),
        "logprob": found.logprob,
    }


def _tell(
    tokens: Sequence[tuple[int, TokenLogprobs | None]], tokenizer: Tokenizer, console: Console
) -> Entries:
    if console.json:
        return [_with_top(found, tokenizer) if found else None for _, found in tokens]

    def written(token: int) -> str:
        return repr(tokenizer.pieces[token].decode(errors="replace"))

    rows = [
        (
            str(token),
            written(token),
            f"{found.logprob:.3f}" if found else "–",
            "  ".join(f"{written(one.token)} {one.logprob:.3f}" for one in found.top) if found else "",
        )
        for token, found in tokens
    ]
    if any(top for *_, top in rows):
        console.table(("#id", "token", "#logprob", "likeliest"), rows)
    else:
        console.table(("#id", "token", "#logprob"), [row[:3] for row in rows])
    return []
