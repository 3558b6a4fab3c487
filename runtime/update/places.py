"""What lies beside a bundle that is updated, and how names change hands; the same in ``src/update/places.cpp``.

Beside the folder NAME: ``.NAME.update``, where the new bundle is built, and ``NAME.former``, the bundle that was
replaced last. In the first: ``for``, the SHA-256 of the manifest that is being built; ``new``, that bundle; ``part``,
a file that is not whole yet; ``old`` and ``gone``, a bundle on its way to being the former one, and a former one on
its way out.

The switch exchanges the names of two folders in one step. Where a system cannot, NAME becomes ``old`` first and ``new``
NAME then; killed in between, the next call puts ``old`` back. A folder is renamed rather than a link: a bundle stays
what it was, a folder, for all that opens it, and systems without links, or the right to make them, update it too.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import exchange as names
from ..bundle.folder import sha256_of
from ..bundle.manifest import MANIFEST
from ..errors import BundleError, UpdateError

LOCKS: Any
try:
    LOCKS = importlib.import_module("fcntl")
except ImportError:  # Windows
    LOCKS = None

TRIES = 100
"""How often a folder that goes again is made before that is an error."""


@dataclass(frozen=True)
class Places:
    """The folders of the bundle ``bundle``, a real path."""

    bundle: Path

    @staticmethod
    def of(bundle: str | Path) -> Places:
        """Those of the folder that ``bundle`` is, or leads to as a link."""
        return Places(Path(os.path.realpath(bundle)))

    @property
    def work(self) -> Path:
        """Where the new bundle is built."""
        return self.bundle.with_name(f".{self.bundle.name}.update")

    @property
    def former(self) -> Path:
        """The bundle that was replaced last."""
        return self.bundle.with_name(f"{self.bundle.name}.former")

    @property
    def new(self) -> Path:
        """The bundle that is being built."""
        return self.work / "new"

    @property
    def part(self) -> Path:
        """The file that is being written."""
        return self.work / "part"

    @property
    def old(self) -> Path:
        """A bundle that was replaced, until it is the former one."""
        return self.work / "old"

    @property
    def note(self) -> Path:
        """Which manifest the bundle ``new`` is to have, in hexadecimal."""
        return self.work / "for"

    def settle(self) -> None:
        """Finish the switch that a process was killed in, or take it back."""
        if not self.old.is_dir() and self.new.is_dir() and self.note.is_file():
            manifest = self.bundle / MANIFEST
            if manifest.is_file() and sha256_of(manifest) == self.note.read_text("ascii", "replace"):
                self.new.rename(self.old)  # the names were exchanged, and no more
        if self.old.is_dir():
            if not self.bundle.exists():
                self.old.rename(self.bundle)
            else:
                self.keep_former()

    def switch(self) -> None:
        """The bundle that was built is the bundle; the one before it becomes the former one."""
        if names.exchange(self.new, self.bundle):
            sync(self.bundle.parent)
            self.new.rename(self.old)
        else:
            self._put_in_place(self.new)
            sync(self.bundle.parent)
        self.keep_former()

    def back(self) -> None:
        """The former bundle is the bundle, and the other way round."""
        if not names.exchange(self.former, self.bundle):
            self._put_in_place(self.former)
            self.old.rename(self.former)
        sync(self.bundle.parent)

    def _put_in_place(self, other: Path) -> None:
        """``other`` is the bundle, which is ``old`` then."""
        self.bundle.rename(self.old)
        try:
            other.rename(self.bundle)
        except OSError:
            self.old.rename(self.bundle)
            raise

    def keep_former(self) -> None:
        """``old`` is the former bundle; the one that was, goes."""
        gone = self.work / "gone"
        shutil.rmtree(gone, ignore_errors=True)
        if self.former.exists():
            self.former.rename(gone)
        self.old.rename(self.former)
        sync(self.bundle.parent)
        shutil.rmtree(gone, ignore_errors=True)

    def clear(self) -> None:
        """What was built goes."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.part.unlink(missing_ok=True)

    def check_former(self) -> None:
        """UpdateError where something lies under the former bundle's name that is no bundle."""
        if os.path.lexists(self.former) and not (self.former / MANIFEST).is_file():
            raise UpdateError(f"{self.former} is in the way: it is no bundle; move it elsewhere")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process updates this bundle; the folder for it is there, and goes if nothing is left in it."""
        if not self.bundle.parent.is_dir():
            raise BundleError(f"{self.bundle} does not exist; give a bundle's folder")
        handle = _locked(self.work)
        try:
            yield
        finally:
            if not (self.new.exists() or self.old.exists()):
                shutil.rmtree(self.work, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and its file systems order such changes themselves
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """The handle that holds the lock of ``folder``, which is made where it is not; None where there are no locks."""
    for _ in range(TRIES):
        with suppress(FileExistsError):
            folder.mkdir()
        if LOCKS is None:
            return None
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # the process that had it has just removed it
            continue
        try:
            LOCKS.flock(handle, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise UpdateError(f"{folder}: another process updates this bundle; wait for it") from error
        if _is_at(handle, folder):
            return handle
        os.close(handle)
    raise UpdateError(f"{folder} does not stay there")


def _is_at(handle: int, folder: Path) -> bool:
    """Whether the open folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(folder))
    except FileNotFoundError:
        return False
