"""The roofs of this machine: what its threads read a second, and what they multiply, measured in a second or two.

Reading is numpy's: the largest byte of a buffer, in slices, one a thread, each read over and over. A buffer that is
larger than the last cache comes from memory each time, a smaller one from the caches. Multiplying is the lane engine's
own kernels on matrices that stay near the core, with so many rows that reading them is nothing (``bare_models.py``).
Nothing is kept from run to run: a machine that was slow yesterday is measured anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.errors import EngineError
from ..machine import free_memory_bytes, last_cache_bytes, memory_limit_bytes, usable_threads
from ..machine_load import ForeignLoad

SPELLS = 5
"""How often each rate is measured; the best counts, for whatever disturbs a spell only slows it down."""
SPELL_S = 0.015
ROWS, INNER = 64, 512
"""Of the matrices that are multiplied: 2 million numbers."""
FLOAT = 32
"""The bits of the rate of float products: those of float matrices and of attention."""
_UNKNOWN_CACHE = 8 << 20
_LEAST, _MOST = 64 << 10, 256 << 20
"""Bytes of a buffer."""
_GUESS = 50e9
"""Bytes a second: how long a spell is depends on it, and nothing else."""


@dataclass(frozen=True)
class Roofs:
    """``reads``: bytes a second by the bytes of a buffer. ``rates``: operations a second, two for each product, by the
    bits of a matrix; none without the lane engine's library, as ``why`` says. ``cache``: bytes of the last cache.
    ``foreign``: the share of the cores that other programs took meanwhile, None where the system does not say."""

    cache: int
    reads: Mapping[int, float]
    rates: Mapping[int, float]
    foreign: float | None
    why: str = ""

    def reading(self, size: float) -> float:
        """Bytes a second of ``size`` bytes that are read over and over: of the buffer nearest in size."""
        return self.reads[
            min(self.reads, key=lambda each: abs(np.log(each / _within(size, max(self.reads)))))
        ]

    def place(self, size: float) -> str:
        """Where ``size`` bytes that are read over and over come from, in a word."""
        return "cache" if size <= self.cache else "memory"


def measured_roofs(sizes: Sequence[float], threads: int, cpus: Sequence[int] = ()) -> Roofs:
    """Measure the roofs of ``threads`` threads, those of the processors ``cpus`` if there are any.

    ``sizes``: bytes that are read over and over, beside half of the last cache and more than it has.
    """
    load, cache, threads = ForeignLoad(), last_cache_bytes() or _UNKNOWN_CACHE, min(threads, usable_threads())
    room = min(each or 4 * _MOST for each in (free_memory_bytes(), memory_limit_bytes())) // 4
    most = int(max(_LEAST, min(_MOST, 4 * cache, room)))
    reads = _reads(sorted({most, *(_within(size, most) for size in (cache // 2, *sizes))}), threads, cpus)
    rates, why = _rates(threads, cpus)
    return Roofs(cache, reads, rates, load.share(), why)


def _within(size: float, most: int) -> int:
    """``size`` as bytes of a buffer of ``most`` bytes."""
    return int(min(max(size, _LEAST), most))


def _reads(sizes: Sequence[int], threads: int, cpus: Sequence[int]) -> dict[int, float]:
    buffer = np.full(max(sizes), 1, np.uint8)  # written, or all of its pages would be the same one of zeros
    with ThreadPoolExecutor(threads) as pool:
        return {
            size: max(_spell(pool, buffer[:size], threads, cpus) for _ in range(SPELLS)) for size in sizes
        }


def _spell(
    pool: ThreadPoolExecutor, buffer: npt.NDArray[np.uint8], threads: int, cpus: Sequence[int]
) -> float:
    """Bytes a second of ``threads`` threads that read their slices of ``buffer`` for about ``SPELL_S`` seconds."""
    part = len(buffer) // threads
    times = max(1, round(SPELL_S * _GUESS / part / threads))
    together = threading.Barrier(threads)

    def read(number: int) -> tuple[float, float]:
        if cpus:
            with suppress(AttributeError, OSError):  # not on macOS and Windows
                os.sched_setaffinity(0, {cpus[number % len(cpus)]})
        slices = np.broadcast_to(buffer[number * part : (number + 1) * part], (times, part))
        together.wait()
        begin = time.perf_counter()
        slices.max(axis=1)
        return begin, time.perf_counter()

    spans = list(pool.map(read, range(threads)))
    return times * part * threads / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def _rates(threads: int, cpus: Sequence[int]) -> tuple[dict[int, float], str]:
    """Operations a second by bits, or why there are none."""
    from ..predicting.bare_models import bare_model, matrices, numbers

    found, made = dict[int, float](), matrices(1, INNER)
    try:
        for bits in (8, 4, FLOAT):
            with bare_model(made, bits) as model:
                seconds = model.seconds(threads, ROWS, 2 * SPELLS, cpus=cpus)
            found[bits] = 2 * ROWS * numbers(1, INNER) / seconds
    except EngineError as error:
        return {}, str(error)
    return found, ""
