"""Checks of the numbers that callers give, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .errors import UsageError
from .wording import shown


def whole_number(value: object, name: str, least: int, most: int | None = None) -> int:
    """Return ``value``, of whatever integer type; UsageError for another type, or outside ``least`` to ``most``."""
    wanted = f"at least {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {shown(value)}, wanted a whole number, {wanted}")
    if value < least or (most is not None and value > most):
        raise UsageError(f"{name} is {shown(value)}, wanted {wanted}")
    return int(value)


def real_number(value: object, name: str) -> float:
    """Return ``value``, of whatever real type; UsageError for another type. Its range is for the caller to check."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise UsageError(f"{name} is {shown(value)}, wanted a number")
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        raise UsageError(f"{name} is {shown(value)}, wanted a number of at most 1e308") from None


def token_ids(
    ids: Sequence[int] | npt.NDArray[np.int64], vocab_size: int, what: str = "token ids"
) -> npt.NDArray[np.int64]:
    """Return ``ids`` as an array [S], S ≥ 1; UsageError when they are something else, or not of the vocabulary.

    ``what``: the name of such numbers, of which there are ``vocab_size``.
    """
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:  # lists in lists of several lengths
        raise UsageError(f"these are no {what}, wanted whole numbers in one row") from error
    if array.ndim == 0:
        raise UsageError(
            f"found a value of type {type(ids).__name__}, wanted {what}: whole numbers in one row"
        )
    if array.ndim != 1 or not array.size:
        raise UsageError(f"{what} of shape {list(array.shape)}, wanted a list of at least one")
    # Among others, numpy takes booleans as 0 and 1.
    is_bool = isinstance(ids, Sequence) and any(isinstance(i, bool) for i in ids)
    if is_bool or array.dtype.kind not in "iu":
        raise UsageError(f"{what} of type {'bool' if is_bool else array.dtype}, wanted integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        found = (
            f"token id {wrong} is not in the vocabulary" if what == "token ids" else f"{what} have {wrong}"
        )
        raise UsageError(f"{found}, wanted 0 to {vocab_size - 1}")
    return array.astype(np.int64, copy=False)


def longer(context: int, largest: int) -> str:
    """Return what to do where more tokens than ``context`` are needed, of a model that can have ``largest``."""
    if context < largest:
        return f", or open the bundle with a longer context (--context, at most {largest})"
    return f"; {largest} is all that this model has"
