"""Where a bundle's files are cut into parts, so that what is the same in two bundles becomes the same parts.

``model.lanes`` and safetensors are cut where tensors (and in a tensor, depths) begin, then each ``BLOCK`` bytes: a
tensor that moved is the same parts, and of one that changed only the blocks that did. Any other file is cut by its
content (where a hash of the last ``WINDOW`` bytes has zeros in it): bytes that were put in move no cut but the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..bundle.folder import Bundle
from ..engines.native.file import NAME, LanesFile
from ..engines.native.layout import Section
from ..engines.native.tiles import code_bytes, float_bytes
from ..errors import BundleError

BLOCK = 4096
WINDOW, LEAST, MOST = 32, 1024, 32768
MASK = np.uint32(0xFFF00000)
"""Of the hash: 12 zeros, so that a part has 4 KiB and ``LEAST`` in the mean. Its highest bits are of all bytes."""
_PIECE = 8 << 20
# The same numbers everywhere: those of a linear congruence (Numerical Recipes'), mixed once.
_GEAR = np.zeros(256, np.uint32)
_state = 1
for _i in range(256):
    _state = (_state * 1664525 + 1013904223) & 0xFFFFFFFF
    _GEAR[_i] = ((_state ^ _state >> 15) * 0x2C1B3C6D) & 0xFFFFFFFF


def cuts(bundle: Bundle, name: str) -> Iterator[tuple[int, int]]:
    """The parts of the file ``name`` of ``bundle``, in order: (where it begins, its bytes)."""
    path = bundle.folder / name
    size = path.stat().st_size
    edges = _edges(bundle, path, size)
    if edges is None:
        yield from _by_content(path, size)
        return
    borders = sorted({0, *edges, size})
    for start, end in pairwise(borders):
        for at in range(start, end, BLOCK):
            yield at, min(BLOCK, end - at)


def _edges(bundle: Bundle, path: Path, size: int) -> list[int] | None:
    """Where a tensor, or a depth of one, begins; None for a file of another kind, or one that is not what it seems."""
    try:
        if path.name == NAME:
            sections = LanesFile(path, bundle.manifest.program).layout.sections
            return [at for section in sections for at in _blocks(section)]
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(start - 8)) if start <= size else {}
            places = [about["data_offsets"][0] for key, about in head.items() if key != "__metadata__"]
            return [start, *(start + at for at in places if 0 <= at < size - start)]
    except (BundleError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return None


def _blocks(section: Section) -> Iterator[int]:
    """Where each depth (or copy, or part) of a section of ``model.lanes`` begins."""
    at = section.offset
    for rows in section.blocks:
        yield at
        if section.form == "codes":
            at += code_bytes(section.storage, rows, section.columns)
        elif section.form == "floats":
            at += float_bytes(section.storage, rows, section.columns)
        else:
            return
    yield at


def _by_content(path: Path, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    for end in _content_edges(path):
        while end - start > MOST:
            yield start, MOST
            start += MOST
        if end - start >= LEAST:
            yield start, end - start
            start = end
    while start < size:
        length = min(MOST, size - start)
        yield start, length
        start += length


def _content_edges(path: Path) -> Iterator[int]:
    """The places behind which the content says that a part ends."""
    with path.open("rb") as file:
        before, at = b"", 0
        while piece := file.read(_PIECE):
            data = np.frombuffer(before + piece, np.uint8)
            found = np.flatnonzero((_hashes(data) & MASK) == 0) + 1
            yield from (at - len(before) + found[found > len(before)]).tolist()
            at += len(piece)
            before = bytes(data[-(WINDOW - 1) :])


def _hashes(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """For each byte the hash of it and those before it: Σ gear(byte j places back) · 2^j, j below 32, modulo 2^32."""
    found = _GEAR[data]
    for step in (1, 2, 4, 8, 16):
        if step < len(found):
            found[step:] += found[:-step] << np.uint32(step)  # numpy makes the right side first
    return found
