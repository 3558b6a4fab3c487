"""The file of an update: tables, a signature, then the parts that the old bundle lacks.

Numbers are little-endian. ``HEADER``; files of the old bundle, then of the new one (``FILE``); ``PART``s; ``COPY``s;
the files' names, UTF-8. These are the tables, which the signature is of: 64 bytes behind them, zeros where there is
none. Then the parts' bytes, one part behind the other, to the end of the file.

A file of the new bundle is its copies, one behind the other: bytes of a file of the old one, or a whole part. Part i is
found by its number and known by its SHA-256. Nothing in a file is trusted: sizes and numbers are those that follow from
each other, so that parts cannot overlap and nothing lies behind the last one. ``src/update/file.cpp`` reads it too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..bundle.folder import is_plain
from ..bundle.manifest import MANIFEST
from ..errors import UpdateError

Array = npt.NDArray[Any]
MAGIC = b"EDGEUPDT"
VERSION = 1
FROM_PART = 0xFFFFFFFF
"""The source of a copy that is a part."""
SIGNATURE = 64
PART_BYTES = 4 << 20
"""Of a part, at most: one is in memory at a time."""
MOST_FILES, MOST_RECORDS, MOST_NAMES = 4096, 1 << 20, 1 << 20
MOST_BYTES = 1 << 48
"""Of a file; sums of so many files stay whole numbers of 64 bits."""
GROWTH = 8
"""A new bundle is at most so many times as large as the old one and the parts together: copies may repeat."""

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("header_bytes", "<u4"),
        ("tables_bytes", "<u8"),
        ("file_bytes", "<u8"),
        ("old_files", "<u4"),
        ("new_files", "<u4"),
        ("parts", "<u4"),
        ("copies", "<u4"),
        ("names_bytes", "<u4"),
        ("unused", "<u4", 3),
    ]
)
FILE = np.dtype(
    [
        ("name", "<u4"),  # where it begins among the names
        ("name_bytes", "<u4"),
        ("bytes", "<u8"),
        ("sha256", "V32"),
        ("first_copy", "<u4"),  # both 0 in the old bundle's
        ("copies", "<u4"),
    ]
)
PART = np.dtype([("bytes", "<u8"), ("sha256", "V32")])
COPY = np.dtype([("source", "<u4"), ("part", "<u4"), ("offset", "<u8"), ("bytes", "<u8")])


@dataclass(frozen=True)
class Listed:
    """A file of a bundle, as an update knows it."""

    name: str
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Copy:
    """Bytes of a new file: of file ``source`` of the old bundle from ``offset`` on, or (``source`` None) a part."""

    source: int | None
    part: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class Update:
    """What the tables of an update say; ``path`` is its file. ``starts``: where each part begins in it."""

    path: Path
    tables: bytes
    signature: bytes
    old: tuple[Listed, ...]
    new: tuple[Listed, ...]
    parts: Array
    starts: Array
    _copies: Array
    _first: tuple[tuple[int, int], ...]

    @property
    def old_manifest(self) -> bytes:
        """SHA-256 of the manifest of the bundle that it is for."""
        return manifest_of(self.old).sha256

    @property
    def new_manifest(self) -> bytes:
        """SHA-256 of the manifest of the bundle that comes of it."""
        return manifest_of(self.new).sha256

    def copies(self, number: int) -> Iterator[Copy]:
        """What the new file of that ``number`` is made of."""
        first, count = self._first[number]
        for source, part, offset, size in self._copies[first : first + count].tolist():
            yield Copy(None if source == FROM_PART else source, part, offset, size)

    def unchanged(self, number: int) -> int | None:
        """The old file that the new file of that ``number`` is, byte for byte; None where there is no such one."""
        wanted = self.new[number]
        copies = list(self.copies(number)) if self._first[number][1] == 1 else []
        if not copies or copies[0].source is None:
            return None
        file = self.old[copies[0].source]
        return copies[0].source if (file.size, file.sha256) == (wanted.size, wanted.sha256) else None

    def part(self, file: BinaryIO, number: int) -> bytes:
        """The bytes of a part, of the opened ``file``; UpdateError where they are not what their hash says."""
        file.seek(int(self.starts[number]))
        data = file.read(int(self.parts["bytes"][number]))
        if hashlib.sha256(data).digest() != bytes(self.parts["sha256"][number]):
            raise UpdateError(f"{self.path}: part {number} is not what its hash says; copy the update again")
        return data


def manifest_of(files: Sequence[Listed]) -> Listed:
    """The manifest among ``files``; UpdateError where there is none."""
    for file in files:
        if file.name == MANIFEST:
            return file
    raise UpdateError(f"an update lists no {MANIFEST}; make it again")


def packed(
    old: Sequence[Listed],
    new: Sequence[Listed],
    copies: Sequence[Sequence[Copy]],
    parts: Sequence[tuple[int, bytes]],
) -> bytes:
    """The tables of an update. ``copies``: of each new file; ``parts``: the size and SHA-256 of each."""
    names, files, first = bytearray(), np.zeros(len(old) + len(new), FILE), 0
    for number, file in enumerate([*old, *new]):
        own = copies[number - len(old)] if number >= len(old) else ()
        name = file.name.encode()
        files[number] = (
            len(names),
            len(name),
            file.size,
            file.sha256,
            first if number >= len(old) else 0,
            len(own),
        )
        names += name
        first += len(own)
    table = np.array(
        [
            (FROM_PART if c.source is None else c.source, c.part, c.offset, c.bytes)
            for own in copies
            for c in own
        ],
        COPY,
    )
    part_table = np.array(list(parts), PART)
    header = np.zeros((), HEADER)
    tables = HEADER.itemsize + files.nbytes + part_table.nbytes + table.nbytes + len(names)
    header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER.itemsize
    header["tables_bytes"], header["names_bytes"] = tables, len(names)
    header["file_bytes"] = tables + SIGNATURE + sum(size for size, _ in parts)
    header["old_files"], header["new_files"] = len(old), len(new)
    header["parts"], header["copies"] = len(parts), len(table)
    return b"".join((header.tobytes(), files.tobytes(), part_table.tobytes(), table.tobytes(), bytes(names)))


def read_update(path: Path) -> Update:
    """The tables of the update ``path``, every number of them checked; UpdateError for what is none, one line."""

    def wrong(what: str) -> UpdateError:
        return UpdateError(f"{path} {what}; copy the update again or make it again with `edgeloop diff`")

    try:
        if not path.is_file():
            raise UpdateError(f"{path} is no file; give an update, which `edgeloop diff` makes")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER.itemsize)
            if len(head) < HEADER.itemsize or head[:8] != MAGIC:
                raise UpdateError(f"{path} is no update; give one, which `edgeloop diff` makes")
            header = np.frombuffer(head, HEADER)[0]
            if header["version"] != VERSION or header["header_bytes"] != HEADER.itemsize:
                raise UpdateError(
                    f"{path}: an update of version {header['version']}, this edgeloop reads {VERSION}; make it again"
                )
            counts = {name: int(header[name]) for name in ("old_files", "new_files", "parts", "copies")}
            names_bytes = int(header["names_bytes"])
            if (
                max(counts["old_files"], counts["new_files"]) > MOST_FILES
                or max(counts["parts"], counts["copies"]) > MOST_RECORDS
                or names_bytes > MOST_NAMES
                or header["unused"].any()
            ):
                raise wrong("has more files, parts or copies than an update may have")
            files = counts["old_files"] + counts["new_files"]
            places = np.cumsum(
                [
                    HEADER.itemsize,
                    files * FILE.itemsize,
                    counts["parts"] * PART.itemsize,
                    counts["copies"] * COPY.itemsize,
                    names_bytes,
                ]
            ).tolist()
            if header["tables_bytes"] != places[-1] or header["file_bytes"] != size:
                raise wrong(
                    f"has {size} bytes where its tables say {header['file_bytes']}, or they are damaged"
                )
            tables = head + file.read(places[-1] - len(head))
            signature = file.read(SIGNATURE)
    except OSError as error:
        raise UpdateError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(tables) != places[-1] or len(signature) != SIGNATURE:
        raise wrong("ends too early")
    table = np.frombuffer(tables, FILE, files, places[0])
    parts = np.frombuffer(tables, PART, counts["parts"], places[1])
    copies = np.frombuffer(tables, COPY, counts["copies"], places[2])
    listed = _listed(table, tables[places[3] :], wrong)
    old, new = listed[: counts["old_files"]], listed[counts["old_files"] :]
    ends = _checked_parts(parts, size - places[-1] - SIGNATURE, wrong)
    first = tuple(map(tuple, table[["first_copy", "copies"]].tolist()))
    if any(pair != (0, 0) for pair in first[: len(old)]):
        raise wrong("has copies of the old bundle's files")
    _check_copies(copies, first[len(old) :], old, new, parts, wrong)
    starts = places[-1] + SIGNATURE + ends - parts["bytes"].astype(np.int64)
    found = Update(path, tables, signature, old, new, parts, starts, copies, first[len(old) :])
    if found.old_manifest == found.new_manifest:
        raise wrong("changes nothing of the manifest")
    return found


def _listed(table: Array, names: bytes, wrong: Any) -> tuple[Listed, ...]:
    found, at = [], 0
    for start, length, size, sha, _, _ in table.tolist():
        raw = names[at : at + length]
        if start != at or len(raw) != length:
            raise wrong("has names that do not lie behind each other")
        at += length
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not is_plain(name) or length > 1024 or any(ord(c) < 32 for c in name):
            raise wrong(f"has a file name that is no plain path inside a bundle, {name[:60]!r}")
        if size > MOST_BYTES:
            raise wrong(f"has more bytes than a file may have, of {name}")
        found.append(Listed(name, size, bytes(sha)))
    if at != len(names):
        raise wrong("has names that do not lie behind each other")
    return tuple(found)


def _checked_parts(parts: Array, room: int, wrong: Any) -> Array:
    """Where each part ends, from the first one's begin; they fill ``room``."""
    sizes = parts["bytes"]
    if len(sizes) and (sizes.min() == 0 or sizes.max() > PART_BYTES):
        raise wrong(f"has a part that is empty or larger than {PART_BYTES} bytes")
    ends = np.cumsum(sizes.astype(np.int64))
    if (int(ends[-1]) if len(ends) else 0) != room:
        raise wrong("has parts that do not fill it")
    return ends


def _check_copies(
    copies: Array,
    first: Sequence[tuple[int, ...]],
    old: Sequence[Listed],
    new: Sequence[Listed],
    parts: Array,
    wrong: Any,
) -> None:
    for files in (old, new):
        names = [file.name.encode() for file in files]
        if any(a >= b for a, b in pairwise(names)):
            raise wrong("lists its files in no order, or one of them twice")
    at = 0
    for file, (start, count) in zip(new, first, strict=True):
        total = 0
        if start != at or count > len(copies) - at:
            raise wrong("has copies that are not those of its files")
        for source, part, offset, size in copies[at : at + count].tolist():
            if source == FROM_PART:
                fine = part < len(parts) and offset == 0 and size == int(parts["bytes"][part])
            else:
                fine = part == 0 and source < len(old) and 0 < size <= old[source].size - offset
            if not fine:
                raise wrong(f"copies to {file.name} what is not there")
            total += size
        if total != file.size:
            raise wrong(f"makes {total} bytes of {file.name}, which has {file.size}")
        at += count
    if at != len(copies):
        raise wrong("has copies that are not those of its files")
    most = GROWTH * (sum(file.size for file in old) + int(parts["bytes"].sum()))
    if (total := sum(file.size for file in new)) > most:
        raise wrong(f"makes {total} bytes of at most {most}")
