"""Limits for the numbers and names in files that are not trusted: they become sizes, divisors, loops and messages.

A problem is a text: what was found, what was wanted. Nothing is raised here: the reader knows which error it is.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_SIZE = 1 << 24
"""Of a width, a vocabulary, a context: more than any model has, and small enough to multiply in 64 bits."""
MAX_LAYERS = 1 << 14
"""Of applied layers, and so of depths."""
MAX_OPS = 1 << 19
"""Of applied ops: 32 for each layer."""
MAX_NUMBERS = 1 << 40
"""Of the numbers in one tensor."""
MAX_NAME = 200
"""Of the characters in the name of a value or a weight."""
FINITE = 1e30
"""The largest factor: a float32 that can still be multiplied."""


def within(name: str, value: float, low: float, high: float) -> Iterator[str]:
    """Yield a problem unless ``value`` is from ``low`` to ``high``; NaN never is."""
    if not low <= value <= high:
        wanted = _bound(low) if low == high else f"{_bound(low)} to {_bound(high)}"
        yield f"{name} is {_written(value)}, wanted {wanted}"


def nameable(what: str, name: str) -> Iterator[str]:
    """Yield a problem unless ``name`` is printable and no longer than ``MAX_NAME``."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        cut = f"{name[:20]!r}{'…' if len(name) > 20 else ''}"
        yield f"{what} is {cut}, wanted 1 to {MAX_NAME} printable characters"


def _bound(value: float) -> str:
    """Return a limit as a text: whole numbers in full, floats in short."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _written(value: float) -> str:
    """Return the digits of ``value``, or the first of them if there are many."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write some of these out
        return "a number of more than 77 digits"
    return f"{str(value)[:20]}…" if len(str(value)) > 24 else str(value)
