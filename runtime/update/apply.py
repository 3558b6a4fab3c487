"""Applies an update: the new bundle is built beside the old one, checked, and takes its place in one step.

Until that step the old bundle is as it was. Killed at any moment, the same call goes on: files that were whole by then
are not made again. Files that are the same in both are second names (hard links) where the file system has them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..bundle.folder import Bundle, sha256_of
from ..bundle.manifest import MANIFEST
from ..bundle.signature import TrustedKey, trusted
from ..errors import BundleError, UpdateError
from .diff import bundle_files
from .format import SIGNATURE, Listed, Update, read_update
from .places import Places, sync

Progress = Callable[[float], None]
_PIECE = 1 << 20
_ROOM = 1 << 20
"""Bytes beside those of the files that must be free: names, folders."""


@dataclass(frozen=True)
class Applied:
    """What ``apply_update`` did: the bundle, the one before it, and how much of the update was new on the disk.

    ``written``: bytes of files that were written; ``kept``: bytes of files that are the old bundle's. ``already``:
    the bundle was the new one before.
    """

    bundle: Path
    former: Path
    written: int
    kept: int
    already: bool = False


def check_update(path: str | Path, trust: str | Path | TrustedKey | None = None) -> Update:
    """Read an update and every part of it; UpdateError where anything is not what its hashes say.

    ``trust``: a public key, or the PEM file of one, which must have signed it.
    """
    update = read_update(Path(path))
    if trust is not None:
        key = trusted(trust)
        if update.signature == bytes(SIGNATURE):
            raise UpdateError(f"{path} is not signed; get a signed update, or apply it without trust")
        if not key.signed(update.tables, update.signature):
            raise UpdateError(f"{path} is not signed by the key in {key.path}, or was changed; do not use it")
    with update.path.open("rb") as file:
        for number in range(len(update.parts)):
            update.part(file, number)
    return update


def apply_update(
    bundle: str | Path,
    update: str | Path,
    *,
    trust: str | Path | TrustedKey | None = None,
    progress: Progress = lambda share: None,
) -> Applied:
    """Make of the bundle folder ``bundle`` the bundle that the file ``update`` is for; the former one stays beside it.

    ``trust``: a public key, or the PEM file of one, that must have signed the update. UpdateError, one line, for an
    update that is damaged, of another bundle or not signed so, and where there is no room; BundleError for a damaged
    bundle. ``bundle`` is as it was then.
    """
    places = Places.of(bundle)
    found = check_update(update, trust)
    with _refused(places), places.alone():
        places.settle()
        there = _manifest(places.bundle)
        if there == found.new_manifest:
            _check_files(places.bundle, found.new, range(len(found.new)))
            return Applied(places.bundle, places.former, 0, sum(f.size for f in found.new), already=True)
        if there != found.old_manifest:
            raise UpdateError(
                f"{bundle} is not the bundle that {update} is for: its {MANIFEST} has SHA-256 {there.hex()[:12]}…, "
                f"wanted {found.old_manifest.hex()[:12]}…; get the update for it"
            )
        places.check_former()
        _check_strangers(places.bundle, found.old)
        for file in found.old:  # sizes of all: how large the new bundle may be is by these
            if (size := (places.bundle / file.name).stat().st_size) != file.size:
                raise BundleError(
                    f"{bundle}: {file.name} has {size} bytes, wanted {file.size}; copy the bundle again"
                )
        used = {c.source for i in range(len(found.new)) for c in found.copies(i) if c.source is not None}
        _check_files(places.bundle, found.old, used)
        try:
            written, kept = _build(places, found, progress)
            # Its hashes are those of the update; this is whether it makes sense, and lists the same files.
            made = Bundle.open(places.new, verify=False)
            if bundle_files(made) != found.new:
                raise UpdateError(f"{update} makes other files than its {MANIFEST} lists; do not use it")
        except Exception:
            places.clear()
            raise
        places.switch()
    return Applied(places.bundle, places.former, written, kept)


def roll_back(bundle: str | Path, *, trust: str | Path | TrustedKey | None = None) -> Path:
    """Give the bundle before the last update its place back; what was there becomes the former one. Returns its folder.

    UpdateError where there is none; BundleError where it is damaged, or not signed by ``trust``, if that is given.
    """
    places = Places.of(bundle)
    with _refused(places), places.alone():
        places.settle()
        if not os.path.lexists(places.former):
            raise UpdateError(f"{bundle} has no former bundle, which is {places.former}; nothing was changed")
        Bundle.open(places.former, trust=trust)
        places.back()
    return places.bundle


@contextmanager
def _refused(places: Places) -> Iterator[None]:
    """File system errors as one line."""
    try:
        yield
    except OSError as error:
        raise UpdateError(
            f"cannot update {places.bundle}: {error.strerror or error}; it is the old bundle or the new one, whole"
        ) from error


def _manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; give a bundle's folder")
    return bytes.fromhex(sha256_of(path))


def _check_strangers(folder: Path, files: tuple[Listed, ...]) -> None:
    """UpdateError for what is in the old bundle's folder and not its own: it would go with the next update."""
    known = {file.name for file in files}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UpdateError(f"{path} is a link; put the file itself there (cp -L)")
        if name not in known and not path.is_dir():
            raise UpdateError(f"{path} is no part of the bundle, and would be lost; move it away")


def _check_files(folder: Path, files: tuple[Listed, ...], numbers: Iterable[int]) -> None:
    """BundleError unless those files of ``folder`` are what they should be."""
    for number in sorted(numbers):
        file = files[number]
        path = folder / file.name
        if not path.is_file():
            raise BundleError(f"{folder}: {file.name} is missing; copy the bundle again")
        if path.stat().st_size != file.size or sha256_of(path) != file.sha256.hex():
            raise BundleError(f"{folder}: {file.name} is damaged or was changed; copy the bundle again")


def _build(places: Places, update: Update, progress: Progress) -> tuple[int, int]:
    """Build the new bundle; what is there of it already stays, if it is right. Bytes written, and bytes kept."""
    name = update.new_manifest.hex()
    if not places.note.is_file() or places.note.read_text("ascii", "replace") != name:
        places.clear()
        places.note.write_text(name, "ascii")
        sync(places.note)
    places.new.mkdir(exist_ok=True)
    _check_room(places, update)
    last = next(i for i, file in enumerate(update.new) if file.name == MANIFEST)
    written = kept = 0
    total = sum(file.size for file in update.new) or 1
    with update.path.open("rb") as parts:
        for number in [*(i for i in range(len(update.new)) if i != last), last]:
            file, same = update.new[number], update.unchanged(number)
            goal = places.new / file.name
            goal.parent.mkdir(parents=True, exist_ok=True)
            if same is not None and _link(places.bundle / update.old[same].name, goal):
                kept += file.size
            elif not _is(goal, file):
                _write(places, update, number, parts, goal)
                written += file.size
            progress((written + kept) / total)
    for folder in sorted({places.new, *(p for p in places.new.rglob("*") if p.is_dir())}, reverse=True):
        sync(folder)
    files = (path for path in places.new.rglob("*") if not path.is_dir())
    there, wanted = {path.relative_to(places.new).as_posix() for path in files}, {f.name for f in update.new}
    for stranger in there - wanted:
        (places.new / stranger).unlink()
    if wanted - there:  # A and a are one file on some systems
        raise UpdateError(
            f"two files of {update.path} have names that are the same here; no bundle can have both on this system"
        )
    return written, kept


def _write(places: Places, update: Update, number: int, parts: BinaryIO, goal: Path) -> None:
    file = update.new[number]
    with places.part.open("wb") as out:
        for piece in _bytes(places.bundle, update, number, parts):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    if not _is(places.part, file):  # from the disk: what counts is what is there
        raise UpdateError(
            f"{update.path} makes a {file.name} that is not what its hash says; copy the update again"
        )
    places.part.replace(goal)


def _bytes(bundle: Path, update: Update, number: int, parts: BinaryIO) -> Iterator[bytes]:
    for copy in update.copies(number):
        if copy.source is None:
            yield update.part(parts, copy.part)
            continue
        with (bundle / update.old[copy.source].name).open("rb") as source:
            source.seek(copy.offset)
            left = copy.bytes
            while left:
                piece = source.read(min(_PIECE, left))
                if not piece:
                    raise BundleError(f"{source.name} ends too early; copy the bundle again")
                left -= len(piece)
                yield piece


def _link(source: Path, goal: Path) -> bool:
    """Give ``source`` a second name; False where the file system has no such thing."""
    try:
        goal.unlink(missing_ok=True)
        os.link(source, goal)
    except OSError:
        return False
    return True


def _is(path: Path, file: Listed) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256.hex()


def _check_room(places: Places, update: Update) -> None:
    """UpdateError where the file system has no room for what is to be written."""
    wanted = sum(
        file.size
        for number, file in enumerate(update.new)
        if update.unchanged(number) is None and not (places.new / file.name).is_file()
    )
    free = shutil.disk_usage(places.work).free
    if wanted + _ROOM > free:
        raise UpdateError(
            f"no room: the update of {places.bundle} writes {wanted} bytes, and {free} are free; free some"
            " and try again"
        )
