"""The tokens that the texts of a logit bias stand for."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..wording import shown
from .tokenizer import Tokenizer


def bias_of_ids(
    bias: Mapping[int | str, float], vocab_size: int, tokenizer: Tokenizer | None
) -> dict[int | str, float]:
    """Return ``bias`` by token id. A text stands for every token that writes exactly that behind other text.

    UsageError for an id outside the vocabulary of ``vocab_size``, a text that no single token writes, and a token
    that is named twice with different numbers.
    """
    found: dict[int | str, float] = {}
    for key, value in bias.items():
        for token in _tokens(key, tokenizer):
            if token >= vocab_size:
                raise UsageError(
                    f"token {shown(token)} of logit_bias is not in the vocabulary, wanted 0 to {vocab_size - 1}"
                )
            if found.setdefault(token, value) != value:
                raise UsageError(
                    f"logit_bias gives token {token} ({shown(key)}) both {found[token]:g} and {value:g}; name it once"
                )
    return found


def _tokens(key: int | str, tokenizer: Tokenizer | None) -> list[int]:
    """Return the ids that a key of a logit bias stands for, at least one."""
    if not isinstance(key, str):
        return [key]
    if tokenizer is None:
        raise UsageError(
            f"the bundle has no tokenizer, so logit_bias cannot find {shown(key)}; give token ids"
        )
    tokens = tokenizer.pieces.writers(key)
    if not tokens:
        parts = [tokenizer.pieces[i].decode(errors="replace") for i in tokenizer.encode(key, special=False)]
        raise UsageError(
            f"no single token writes {shown(key)}, which logit_bias names; it is written as "
            f"{', '.join(map(shown, parts))}: name one of these, or give token ids"
        )
    return tokens
