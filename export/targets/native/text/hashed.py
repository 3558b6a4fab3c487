"""Tables by hash, as src/text/format.h has them: made at once, of all keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .....runtime.engines.native.text_format import HASH, MAX_PROBES, NONE
from .....runtime.errors import ExportError

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Places:
    """``at``: the place of each key. ``size``: places of the table. ``homes`` and ``probes``: as the rules say them."""

    at: npt.NDArray[np.int64]
    size: int
    homes: int
    probes: int


def hashes(texts: Sequence[bytes]) -> U32:
    """The hash of each text, mixed."""
    found = np.full(len(texts), HASH, np.uint32)
    sizes = np.array([len(text) for text in texts], np.int64)
    order = np.argsort(-sizes, kind="stable")
    starts = np.cumsum(sizes) - sizes
    data = np.frombuffer(b"".join(texts), np.uint8)
    left = len(order)
    for at in range(int(sizes.max(initial=0))):
        while left and sizes[order[left - 1]] <= at:
            left -= 1
        some = order[:left]
        found[some] = (found[some] ^ data[starts[some] + at]) * np.uint32(0x01000193)
    found ^= found >> np.uint32(16)
    found *= np.uint32(0x85EBCA6B)
    return found ^ found >> np.uint32(13)


def pair_hashes(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> U32:
    """The hash of each pair of tokens."""
    mixed = (left | right << np.uint64(24)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def places(keys: U32) -> Places:
    """Where keys of these hashes lie: at home, or as near behind it as there is room. A quarter is empty."""
    count = len(keys)
    homes = count + count // 3 + 1 if count else 0
    home = (keys.astype(np.uint64) * np.uint64(homes) >> np.uint64(32)).astype(np.int64)
    order = np.argsort(home, kind="stable")
    steps = np.arange(count)
    at = np.maximum.accumulate(home[order] - steps) + steps if count else home
    probes = int((at - home[order]).max(initial=0)) + 1
    if probes > MAX_PROBES:
        raise ExportError(f"{probes} keys of a table have one place, wanted {MAX_PROBES} at most")
    found = np.empty(count, np.int64)
    found[order] = at
    return Places(found, homes + probes, homes, probes)


def slots(texts: Sequence[bytes], numbers: Sequence[int]) -> tuple[bytes, Places]:
    """A table of ``numbers`` by their texts: each with 8 bits of the hash above it."""
    keys = hashes(texts)
    where = places(keys)
    table = np.full(where.size if texts else 0, NONE, np.uint32)
    table[where.at] = np.array(numbers, np.uint32) | (keys & np.uint32(0xFF)) << np.uint32(24)
    return table.astype("<u4").tobytes(), where
