"""Checks of the numbers that callers give, and what can be done about one that does not fit."""

from __future__ import annotations

import numpy as np

from .errors import UsageError


def whole_number(value: object, name: str, least: int, most: int | None = None) -> int:
    """``value``, of whatever integer type; UsageError when it is something else, or not in ``least`` to ``most``."""
    wanted = f"at least {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r:.40}, wanted a whole number, {wanted}")
    if value < least or (most is not None and value > most):
        raise UsageError(f"{name} is {value!s:.40}, wanted {wanted}")
    return int(value)


def longer(context: int, largest: int) -> str:
    """What to do where more tokens than ``context`` are needed, of a model that can have ``largest``."""
    if context < largest:
        return f", or open the bundle with a longer context (--context, at most {largest})"
    return f"; {largest} is all that this model has"
