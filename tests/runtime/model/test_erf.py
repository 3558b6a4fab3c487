"""The error function of arrays against Python's, one number at a time."""

from __future__ import annotations

from math import erf as erf_of_one

import numpy as np

from edgeloop.runtime.model.erf import LAST, POINTS, erf


def test_each_number_is_pythons_to_float64() -> None:
    """On a grid, next to the table's points and half way between them, in the tails and next to zero."""
    points = np.arange(-LAST * POINTS - 9, LAST * POINTS + 10) / POINTS
    x = np.concatenate(
        [
            np.linspace(-7, 7, 40_001),
            *(points + shift for shift in (0, 1e-9, -1e-9, 0.5 / POINTS, 0.499999 / POINTS)),
            np.geomspace(1e-300, 1, 2_000),
        ]
    )
    wanted = np.array([erf_of_one(value) for value in x])
    assert (np.abs(erf(x) - wanted) <= 4 * np.finfo(np.float64).eps * np.abs(wanted)).all()
    halves = x.astype(np.float32).reshape(-1, 1)
    found = erf(halves).astype(np.float32)
    assert found.shape == halves.shape
    each = np.array([[np.float32(erf_of_one(value))] for value in halves[:, 0].tolist()])
    assert (np.abs(found - each) <= np.spacing(np.abs(each))).all()


def test_what_is_no_usual_number() -> None:
    found = erf(np.array([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(found, [0.0, -0.0, 1.0, -1.0, np.nan])
    assert np.signbit(found).tolist()[:4] == [False, True, False, True]
    assert erf(np.empty((0, 3), np.float32)).shape == (0, 3)
