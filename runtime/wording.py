"""Values and errors as they stand in a message: on one line, of bearable length."""

from __future__ import annotations

import numpy as np

VALUE, REASON = 80, 200
"""Characters of a value, and of what an error says."""


def shown(value: object) -> str:
    """A value that was found where another was wanted."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write some of these out
        return "a number of more than 77 digits"
    return _cut(repr(value.item() if isinstance(value, np.generic) else value), VALUE)


def reason(error: object) -> str:
    """What an error of a library, or a text, says, without characters that steer a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _cut("".join(c if c.isprintable() else "?" for c in text), REASON)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
