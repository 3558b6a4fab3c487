"""Measures the computer that this runs on, in less than a minute, and writes it down as a device profile."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import date

from ..machine import free_memory_bytes, last_cache_bytes, memory_bytes, processor, usable_threads
from .bare_models import CHUNK, CONTEXT, HEAD, HEADS, BareModel, attention, bare_model, matrices, numbers
from .device import Device, Rate

Progress = Callable[[str, float], None]
SPELLS = 3
"""How often each rate is measured, apart in time: the median counts."""
_MOST_BYTES = 256 << 20
_INNER = 8192
"""Of the matrices that are more than the cache."""
_UNKNOWN_CACHE = 8 << 20
"""Where the system does not say how large its last cache is."""


def measured(progress: Progress, name: str) -> Device:
    """Return the profile ``name`` of this computer; EngineError without the lane engine's library."""
    threads, cache = usable_threads(), last_cache_bytes()
    size = cache or _UNKNOWN_CACHE
    most = min(_MOST_BYTES, 8 * size, (free_memory_bytes() or _MOST_BYTES) // 4)
    far, near = max(1, most // numbers(1, _INNER)), max(64, size // 2 // numbers(1, 1) // 64 * 64)
    progress("writing matrices", 0.0)
    with (
        bare_model(matrices(far, _INNER)) as large,
        bare_model(matrices(1, near)) as small,
        bare_model(attention()) as attending,
    ):
        kinds: dict[str, Callable[[int], float]] = {
            "read_gb_s": lambda n: numbers(far, _INNER) / large.seconds(n, 1, 8),
            "cache_gb_s": lambda n: numbers(1, near) / small.seconds(n, 1, 60),
            "int8_gops": lambda n: 2 * CHUNK * numbers(1, near) / small.seconds(n, CHUNK, 8),
            "float_gops": lambda n: _attention_rate(attending, n),
        }
        counts, found = sorted({1, threads}), dict[tuple[str, int], list[float]]()
        turns = [(spell, kind, n) for spell in range(SPELLS) for kind in kinds for n in counts]
        for turn, (_, kind, n) in enumerate(turns):
            progress(f"{kind}, {n} thread{'s' * (n > 1)}", (turn + 1) / (len(turns) + 1))
            found.setdefault((kind, n), []).append(kinds[kind](n) * 1e-9)
    rates = {}
    for kind in kinds:
        one, every = (statistics.median(found[kind, n]) for n in (1, threads))
        rates[kind] = Rate(_short(one), _short(max(one, every)))
    said = f"measured by edgeloop device measure, {date.today()}"
    known = "the system's" if cache else "derived: the system says nothing; 8 MB are usual"
    return Device(
        name=name,
        chip=processor(),
        cores=threads,
        memory_gb=_short((memory_bytes() or 0) / 1e9) or 1.0,
        cache_mb=_short((cache or _UNKNOWN_CACHE) / 1e6),
        sustained=1.0,
        sources={
            "cores": "the system's",
            "memory_gb": "the system's",
            "cache_mb": known,
            "sustained": "derived: not measured, which takes minutes: edgeloop bench --soak shows it",
            **dict.fromkeys(kinds, said),
        },
        **rates,
    )


def _attention_rate(attending: BareModel, threads: int) -> float:
    """Operations a second of attention: what so many keys add to a call."""
    without, behind = attending.seconds(threads, CHUNK, 6), attending.seconds(threads, CHUNK, 6, CONTEXT)
    return 4 * HEADS * HEAD * CONTEXT * CHUNK / max(behind - without, 0.05 * behind)


def _short(value: float) -> float:
    """``value`` to three digits."""
    return float(f"{value:.3g}")
