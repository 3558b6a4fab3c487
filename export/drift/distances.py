"""How far states and predictions of the same tokens are from each other, row by row, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def norms(x: npt.NDArray[np.floating]) -> F64:
    """Return the norm of each row of x [n, D]."""
    wide = np.asarray(x, np.float64)
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", wide, wide)))


def scale_of(state: F32) -> F64:
    """The norms that errors are relative to; 1 where a state is zero."""
    found = norms(state)
    return np.where(found > 0, found, 1.0)


def cosines(a: F32, b: F32) -> F64:
    """Return the cosine of the angle between the rows of a and b [n, D]."""
    products = np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))
    return np.asarray(products / (scale_of(a) * scale_of(b)))


def divergences(a: F32, b: F32) -> F64:
    """Return KL(softmax a, softmax b) of each row of a and b [n, V], in nats."""
    p, q = log_softmax(a), log_softmax(b)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def log_softmax(x: F32) -> F64:
    """Return x − log Σ exp x of each row."""
    wide = np.asarray(x - x.max(axis=1, keepdims=True), np.float64)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))
