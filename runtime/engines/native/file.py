"""A ``model.lanes`` file: written as a stream from stored tensors, and read back to be compared with them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError
from ...model.codec import GroupSizes, code_shape
from ...model.program import Program
from ...model.weights import Matrix
from .format import HEADER, MAGIC, RECORDS, TILE, VERSION, Storage, TableNumber, filled_up
from .layout import Layout, Section, Stored, layout, stored_as
from .tiles import BITS, TYPES, code_bytes, code_rows, code_tiles, float_bytes, float_rows, float_tiles

Array = npt.NDArray[Any]
NAME = "model.lanes"
_PIECE = 4 << 20
"""Bytes that are laid out at a time."""
_MENDED = "copy the bundle again or export it again"


def write_lanes(
    path: Path,
    program: Program,
    stored: Mapping[str, Array],
    group_sizes: GroupSizes,
    progress: Callable[[float], None] = lambda share: None,
    text: bytes = b"",
) -> Layout:
    """Write the file of ``program`` whose tensors, by name, are ``stored`` (``model/stored.py``); they may be mapped.
    ``text``: its text section (``text_format.py``), if it has one.

    One piece of one tensor is in memory at a time. The same bytes for the same numbers.
    """
    made = layout(program, stored_as(program, stored, group_sizes), len(text))
    with path.open("wb") as file:
        file.write(made.head)
        for section in made.sections:
            file.seek(section.offset)
            for piece in _pieces(section, stored[section.tensor]):
                file.write(piece)
            progress(file.tell() / made.file_bytes)
        file.truncate(made.text)
        file.seek(made.text)
        file.write(text)
    return made


class LanesFile:
    """A file that is there, checked against the program that it is said to be of."""

    def __init__(self, path: Path, program: Program) -> None:
        """BundleError unless every number of its header and tables is what ``program`` wants."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty one
            raise BundleError(f"{path} cannot be read ({error}); {_MENDED}") from error
        try:
            stored, header = self._stored(program), self._header()
            frequencies = self._table(header, TableNumber.FREQUENCIES)
            wanted = layout(program, stored, int(header["text_bytes"]), frequencies)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise BundleError(f"{path}: {error}; {_MENDED}") from error
        head = self.data[: len(wanted.head)]
        if head != wanted.head or len(self.data) != wanted.file_bytes:
            at = next(
                (i for i, pair in enumerate(zip(head, wanted.head, strict=False)) if len({*pair}) > 1),
                len(head),
            )
            raise BundleError(
                f"{path} is of another model than the manifest describes: byte {at} differs, of {len(self.data)} "
                f"where {wanted.file_bytes} were wanted; {_MENDED}"
            )
        self.layout = wanted

    @property
    def text(self) -> bytes:
        """The text section; nothing where there is none."""
        return bytes(self.data[self.layout.text :])

    def tensors(self) -> Iterator[tuple[str, Iterator[Array]]]:
        """Every stored tensor by its name, codes and scales as a bundle has them: some rows [n, …] at a time."""
        for section in self.layout.sections:
            yield section.tensor, _read(section, self.data)

    def sections(self) -> Iterator[tuple[Section, bool]]:
        """Each section, with whether it has the bytes of a file that holds the same numbers and nothing else."""
        for section in self.layout.sections:
            at, same = section.offset, True
            for rows in _read(section, self.data):
                wanted = _laid_out(section, rows).tobytes()
                same = same and self.data[at : (at := at + len(wanted))] == wanted
            yield section, same

    def _stored(self, program: Program) -> dict[str, Stored]:
        """How the file says that it stores each matrix of ``program``; ValueError where it is no such file."""
        header = self._header()
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']}, wanted {VERSION}")
        matrices, parts = (
            self._table(header, number) for number in (TableNumber.MATRICES, TableNumber.PARTS)
        )
        names = [name for name, weight in program.weights.items() if isinstance(weight, Matrix)]
        if len(names) != len(matrices):
            raise ValueError(f"{len(matrices)} matrices, the manifest has {len(names)}")
        found = {}
        for name, record in zip(names, matrices, strict=True):
            first = int(record["first_part"])
            deltas = [part["storage"] for part in parts[first : first + int(record["parts"])] if part["rank"]]
            kind = Storage(deltas[0]) if deltas else Storage.F32
            storage, group = Storage(record["storage"]), int(record["group"])
            if (
                kind not in (*TYPES, Storage.I8)
                or (storage in TYPES) != (group == 0)
                or group > 1 << 24
                or group % 2
            ):
                raise ValueError(f"{name} is stored as nothing that there is")
            found[name] = Stored(storage, group, kind)
        return found

    def _header(self) -> Array:
        if len(self.data) < HEADER.itemsize or self.data[:8] != MAGIC:
            raise ValueError("no model.lanes file")
        found: Array = np.frombuffer(self.data, HEADER, 1)[0]
        return found

    def _table(self, header: Array, number: TableNumber) -> Array:
        offset, count = (int(x) for x in header["tables"][number])
        if offset + count * RECORDS[number].itemsize > len(self.data):
            raise ValueError("a table behind the end of the file")
        return np.frombuffer(self.data, RECORDS[number], count, offset)


def _pieces(section: Section, stored: Array) -> Iterator[bytes]:
    """The bytes of ``section``, some tiles at a time, of its tensor as a bundle stores it."""
    rows, first = stored.reshape(sum(section.blocks), *_row(section)), 0
    for count in _counts(section):
        yield _laid_out(section, rows[first : first + count]).tobytes()
        first += count


def _counts(section: Section) -> Iterator[int]:
    """How many rows are laid out at a time: all of some tiles, or the last ones of a block."""
    most = filled_up(max(1, _PIECE * TILE // max(1, _tile_bytes(section))), TILE)
    for block in section.blocks:
        for first in range(0, block, most):
            yield min(most, block - first)


def _laid_out(section: Section, rows: Array) -> Array:
    if section.form == "numbers":
        return np.pad(rows, (0, -len(rows) % TILE)).astype("<f4", copy=False)
    if section.form == "codes":
        return code_tiles(rows, BITS[section.storage], section.columns)
    return float_tiles(rows.astype(TYPES[section.storage], copy=False))


def _read(section: Section, data: bytes | mmap.mmap) -> Iterator[Array]:
    """The tensor of ``section`` as a bundle stores it, some rows [n, …] at a time."""
    start = section.offset
    for rows in _counts(section):
        tiles = filled_up(rows, TILE) // TILE
        length = tiles * _tile_bytes(section)
        if section.form == "numbers":
            yield np.frombuffer(data, "<f4", rows, start)
        elif section.form == "codes":
            steps = np.frombuffer(data, np.uint8, length, start).reshape(tiles, -1, TILE, 4)
            yield code_rows(steps, BITS[section.storage], rows, section.columns, section.group)
        else:
            kind = TYPES[section.storage]
            floats = np.frombuffer(data, kind, length // kind.itemsize, start)
            yield float_rows(floats.reshape(tiles, section.columns, TILE), rows)
        start += length


def _row(section: Section) -> tuple[int, ...]:
    """The shape of a row of the section's tensor."""
    if section.form == "numbers":
        return ()
    if section.form == "codes":
        return code_shape(1, section.columns, section.group, BITS[section.storage])[1:]
    return (section.columns,)


def _tile_bytes(section: Section) -> int:
    if section.form == "numbers":
        return 4 * TILE
    size = code_bytes if section.form == "codes" else float_bytes
    return size(section.storage, TILE, section.columns)
