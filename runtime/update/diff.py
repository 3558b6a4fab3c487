"""Makes an update: which bytes of a new bundle the old one has, and the rest."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle.folder import Bundle
from ..bundle.manifest import MANIFEST
from ..bundle.signature import SIGNATURES, SigningKey
from ..errors import UpdateError, UsageError
from .cuts import cuts
from .format import PART_BYTES, SIGNATURE, Copy, Listed, packed


@dataclass(frozen=True)
class Made:
    """An update that was written: its bytes, those of the new bundle, and what each changed file took of the update.

    ``changed``: by the file's name, its bytes and those of them that are in the update.
    """

    path: Path
    bytes: int
    old_bytes: int
    new_bytes: int
    changed: dict[str, tuple[int, int]]


def make_update(old: str | Path, new: str | Path, out: str | Path, key: SigningKey | None = None) -> Made:
    """Write the file ``out``, which makes the bundle ``new`` of the bundle ``old``; signed with ``key``, if given.

    The same bytes for the same two bundles. Both are checked whole. UsageError where there is nothing to change,
    BundleError for a damaged bundle, UpdateError where ``out`` cannot be written.
    """
    before, after, out = Bundle.open(old), Bundle.open(new), Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder; an update is one file, name it")
    listed, wanted = bundle_files(before), bundle_files(after)
    if _sha(listed, MANIFEST) == _sha(wanted, MANIFEST):
        raise UsageError(f"{old} and {new} are the same bundle; there is nothing to update")
    sources = [_mapped(before.folder / file.name) for file in listed]
    known = _Known(before, listed, sources)
    copies, parts, changed = [], _Parts(), {}
    for file in wanted:
        same = known.whole(file)
        own = [same] if same else _made_of(after, file, known, parts)
        copies.append(own)
        if not same:
            changed[file.name] = (file.size, sum(c.bytes for c in own if c.source is None))
    tables = packed(listed, wanted, copies, parts.records)
    signature = key.sign(tables) if key else bytes(SIGNATURE)
    fresh = out.with_name(f"{out.name}.new")
    try:
        with fresh.open("wb") as written:
            written.write(tables + signature)
            for piece in parts.pieces:
                written.write(piece)
        fresh.replace(out)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UpdateError(f"cannot write {out}: {error.strerror or error}") from error
    before_bytes, after_bytes = (sum(file.size for file in files) for files in (listed, wanted))
    return Made(out, out.stat().st_size, before_bytes, after_bytes, changed)


def bundle_files(bundle: Bundle) -> tuple[Listed, ...]:
    """All files of a bundle by their names: manifest, signature, and what the manifest lists."""
    found = [
        Listed(name, file.bytes, bytes.fromhex(file.sha256)) for name, file in bundle.manifest.files.items()
    ]
    for name in (MANIFEST, *SIGNATURES):
        if (path := bundle.folder / name).is_file():
            data = path.read_bytes()
            found.append(Listed(name, len(data), hashlib.sha256(data).digest()))
    return tuple(sorted(found, key=lambda file: file.name.encode()))


class _Known:
    """The parts of the old bundle, by their hash."""

    def __init__(self, bundle: Bundle, files: Sequence[Listed], sources: Sequence[memoryview]) -> None:
        self._whole = {(file.size, file.sha256): i for i, file in reversed([*enumerate(files)]) if file.size}
        self._parts: dict[bytes, tuple[int, int, int]] = {}
        self._sources = sources
        for number, file in enumerate(files):
            for start, size in cuts(bundle, file.name) if file.size else ():
                digest = hashlib.sha256(sources[number][start : start + size]).digest()
                self._parts.setdefault(digest, (number, start, size))

    def whole(self, file: Listed) -> Copy | None:
        """The old file with the bytes of ``file``."""
        number = self._whole.get((file.size, file.sha256))
        return None if number is None else Copy(number, 0, 0, file.size)

    def find(self, data: memoryview, last: Copy | None) -> Copy | None:
        """Where ``data`` is; behind ``last``, if it is there too."""
        if last is not None and last.source is not None:
            at = last.offset + last.bytes
            if self._sources[last.source][at : at + len(data)] == data:
                return Copy(last.source, 0, at, len(data))
        place = self._parts.get(hashlib.sha256(data).digest())
        return Copy(place[0], 0, place[1], place[2]) if place else None


class _Parts:
    """The parts of an update, each once."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []
        self.pieces: list[memoryview] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, data: memoryview) -> Copy:
        digest = hashlib.sha256(data).digest()
        if digest not in self._numbers:
            self._numbers[digest] = len(self.records)
            self.records.append((len(data), digest))
            self.pieces.append(data)
        return Copy(None, self._numbers[digest], 0, len(data))


def _made_of(bundle: Bundle, file: Listed, known: _Known, parts: _Parts) -> list[Copy]:
    """What the new ``file`` is made of: neighbouring copies of the old bundle are one, and so are new parts."""
    if not file.size:
        return []
    data = _mapped(bundle.folder / file.name)
    found: list[Copy] = []
    new = 0  # where the bytes begin that the old bundle lacks, up to `start`

    def lacking(end: int) -> None:
        for at in range(new, end, PART_BYTES):
            found.append(parts.add(data[at : min(end, at + PART_BYTES)]))

    for start, size in cuts(bundle, file.name):
        last = found[-1] if found and new == start else None
        there = known.find(data[start : start + size], last)
        if there is None:
            continue
        lacking(start)
        last = found[-1] if found else None
        if last and last.source == there.source and last.offset + last.bytes == there.offset:
            found[-1] = Copy(last.source, 0, last.offset, last.bytes + there.bytes)
        else:
            found.append(there)
        new = start + size
    lacking(file.size)
    return found


def _sha(files: Sequence[Listed], name: str) -> bytes:
    return next(file.sha256 for file in files if file.name == name)


def _mapped(path: Path) -> memoryview:
    """The bytes of a file."""
    if not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
