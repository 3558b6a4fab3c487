"""Checks of the numbers that callers give, and what can be done about one that does not fit."""

from __future__ import annotations

import numpy as np

from .errors import UsageError


def whole_number(value: object, name: str, least: int, most: int | None = None) -> int:
    """``value``, of whatever integer type; UsageError when it is something else, or not in ``least`` to ``most``."""
    wanted = f"at least {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {_shown(value)}, wanted a whole number, {wanted}")
    if value < least or (most is not None and value > most):
        raise UsageError(f"{name} is {_shown(value)}, wanted {wanted}")
    return int(value)


def real_number(value: object, name: str) -> float:
    """``value``, of whatever real type; UsageError when it is something else. Its range is the caller's."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise UsageError(f"{name} is {_shown(value)}, wanted a number")
    return float(value)


def _shown(value: object) -> str:
    if (
        isinstance(value, int) and value.bit_length() > 256
    ):  # Python itself refuses to write some of these out
        return "a number of more than 77 digits"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def longer(context: int, largest: int) -> str:
    """What to do where more tokens than ``context`` are needed, of a model that can have ``largest``."""
    if context < largest:
        return f", or open the bundle with a longer context (--context, at most {largest})"
    return f"; {largest} is all that this model has"
