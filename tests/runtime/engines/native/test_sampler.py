"""The lane engine's sampler is Python's: numpy's uniform numbers, filters with their ties, and so every choice."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from edgeloop.runtime.decode.sampling import F32, Sampler, SamplingOptions
from edgeloop.runtime.engines.native.decoder import sampling_struct
from edgeloop.runtime.engines.native.library import Calls
from edgeloop.runtime.errors import UsageError

pytestmark = pytest.mark.usefixtures("lane_engine")
SIZES = (1, 2, 3, 5, 37, 1000, 4096)


def choose(logits: F32, options: SamplingOptions, position: int) -> int:
    found = ctypes.c_int64()
    Calls()(
        "el_choose",
        ctypes.byref(sampling_struct(options)),
        logits.ctypes.data,
        len(logits),
        position,
        ctypes.byref(found),
    )
    return found.value


def rows(size: int, count: int) -> Iterator[F32]:
    """Clear and flat logits, with and without ties."""
    random = np.random.default_rng(size)
    for i in range(count):
        row = random.standard_normal(size) * (0, 0.1, 1, 5, 30)[i % 5]
        if i % 3 == 1:
            row = np.round(row)  # many are equal
        if i % 7 == 2:
            row[random.integers(0, size, max(1, size // 2))] = -np.inf if size > 2 else 0
        yield row.astype(np.float32)


OPTIONS = [
    SamplingOptions(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed)
    for (t, k, p, m), seed in zip(
        product((0.3, 1.0, 2.5), (0, 1, 5, 900), (1.0, 0.9, 0.3), (0.0, 0.05)), range(10**6), strict=False
    )
]


@pytest.mark.parametrize("size", SIZES)
def test_every_choice_is_pythons(size: int) -> None:
    """Thousands of them over all sizes, options, positions and seeds."""
    chosen = set()
    for number, row in enumerate(rows(size, 20)):
        assert choose(row, SamplingOptions(), number) == row.argmax()
        for options in OPTIONS:
            position = 2**40 * (number % 2) + number
            wanted = Sampler(options).choose(row, [], position)
            assert choose(row, options, position) == wanted, (number, options)
            chosen.add(wanted)
    assert len(chosen) >= min(size, 20)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_the_noise_is_numpys(seed: int) -> None:
    """At a high temperature noise alone decides: the first token, which numpy has drawn most for."""
    row = np.zeros(4096, np.float32)
    for position in [*range(40), 2**32, 2**63]:
        options = SamplingOptions(temperature=1e6, seed=seed)
        assert choose(row, options, position) == Sampler(options).choose(row, [], position)


def test_logits_that_leave_no_token() -> None:
    for row in ([np.nan, 1.0], [-np.inf, -np.inf]):
        for options in (
            SamplingOptions(),
            SamplingOptions(temperature=1.0),
            SamplingOptions(temperature=1.0, top_k=1),
        ):
            assert choose(np.array(row, np.float32), options, 0) == -1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": -1.0}, "a temperature of -1, wanted 0 or more"),
        ({"temperature": float("nan")}, "a temperature of nan, wanted 0 or more"),
        ({"top_p": 0.0}, "a top_p of 0, wanted more than 0 and at most 1"),
        ({"min_p": 2.0}, "a min_p of 2, wanted 0 to 1"),
        ({"struct_bytes": 3}, "el_sampling of 3 bytes, wanted 40: compiled with another edgeloop.h"),
    ],
)
def test_options_that_there_are_not(wrong: dict[str, float], words: str) -> None:
    given = sampling_struct(SamplingOptions())
    for name, value in wrong.items():
        setattr(given, name, value)
    found, row = ctypes.c_int64(), np.zeros(3, np.float32)
    with pytest.raises(UsageError) as error:
        Calls()("el_choose", ctypes.byref(given), row.ctypes.data, 3, 0, ctypes.byref(found))
    assert str(error.value) == words
