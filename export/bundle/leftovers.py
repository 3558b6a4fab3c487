"""The hidden folders that exports work in: who owns one, and the removal of those that killed exports left.

A working process holds a lock on its folder, which the system releases when it dies. Where there are no locks (Windows,
some network file systems), a folder in which nothing changed for a day counts as left behind.
"""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCKS: Any
try:
    LOCKS = importlib.import_module("fcntl")
except ImportError:  # Windows
    LOCKS = None

MARK = ".edgeloop-partial-"
NEW, OLD, PLACE = "new", "old", "place"
"""In a hidden folder: the new folder, the one that it replaces, and a file with the path of that one."""
AGE = 24 * 3600.0
_TRIES = 100


def hidden_folder(parent: Path) -> tuple[Path, int | None]:
    """Return a new hidden folder in ``parent``, and the handle that holds its lock; None where there are no locks."""
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=MARK, dir=parent))
        try:
            handle = take(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process that sweeps was faster
        if handle is None or folder.exists():
            return folder, handle
        os.close(handle)
    raise OSError(f"no hidden folder in {parent} stays there")


def take(folder: Path) -> int | None:
    """Lock ``folder``, which is no link; None where there are no locks, BlockingIOError when it is locked."""
    if LOCKS is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        LOCKS.flock(handle, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def sweep(parent: Path) -> None:
    """Remove what killed exports of this user left in ``parent``.

    A link or a pipe under such a name goes too, and nothing that it leads to. Only a folder that an export had
    moved aside is put back, to the path that is written beside it, if that is free.
    """
    for path in parent.glob(f"{MARK}*"):
        with suppress(OSError, ValueError):
            _sweep(path)


def _sweep(path: Path) -> None:
    found = path.lstat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return
    if not stat.S_ISDIR(found.st_mode):
        path.unlink()
        return
    try:
        handle = take(path)
    except BlockingIOError:
        return  # a running process works in it
    if handle is None and time.time() - _last_change(path) < AGE:
        return
    try:
        _put_back(path)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        if handle is not None:
            os.close(handle)


def _put_back(path: Path) -> None:
    old, note = path / OLD, path / PLACE
    if not all(p.exists() and not p.is_symlink() for p in (old, note)) or not old.is_dir():
        return
    place = Path(note.read_text(encoding="utf-8")) if note.is_file() else path
    if place.parent == path.parent and not os.path.lexists(place):
        old.rename(place)


def _last_change(path: Path) -> float:
    times = [path.lstat().st_mtime]
    for folder, _, files in os.walk(path):
        times += [os.lstat(os.path.join(folder, name)).st_mtime for name in (".", *files)]
    return max(times)
