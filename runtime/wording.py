"""Values and errors as they are written in messages: on one line, of limited length."""

from __future__ import annotations

import numpy as np

VALUE, REASON = 80, 200
"""Most characters of a value, and of an error's text."""


def shown(value: object) -> str:
    """Return ``value``, which was found where another was wanted, for a message."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write some of these out
        return "a number of more than 77 digits"
    return _cut(repr(value.item() if isinstance(value, np.generic) else value), VALUE)


def reason(error: object) -> str:
    """Return the text of a library's error, or a text, on one line and without characters that steer a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _cut("".join(c if c.isprintable() else "?" for c in text), REASON)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
