"""Makes a folder in hiding beside its place, which it takes in one step, or never.

What was at the place stays whole until that step: the two names are exchanged. Where a system has no such call, the old
folder is moved aside first; if the process dies between these two steps, the next export beside it puts it back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.bundle.exchange import exchange
from ...runtime.errors import ExportError
from .leftovers import NEW, OLD, PLACE, hidden_folder, sweep


@contextmanager
def staged(out: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a folder that becomes ``out`` when the block ends without an error, and is removed when it does not.

    Everything in it is on the disk before it gets its name. ``check`` is called just before that, and may raise.
    Where ``out`` is a link, what it points to is written, and the link stays. ExportError when the file system
    refuses (full disk, no permission).
    """
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        hidden, handle = hidden_folder(out.parent)
    except OSError as error:
        raise ExportError(f"cannot write beside {out}: {error.strerror or error}") from error
    try:
        (hidden / NEW).mkdir()
        yield hidden / NEW
        _sync_all(hidden / NEW)
        check()
        _put_in_place(hidden, out)
    except OSError as error:
        raise ExportError(
            f"cannot write {out}: {error.strerror or error}; nothing was changed there"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _put_in_place(hidden: Path, out: Path) -> None:
    new, old = hidden / NEW, hidden / OLD
    if not out.exists():
        new.rename(out)
    elif not exchange(new, out):
        (hidden / PLACE).write_text(str(out), encoding="utf-8")
        _sync(hidden / PLACE)
        out.rename(old)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
    _sync(out.parent)


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    """Flush the file or folder ``path`` to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and its file systems order such changes themselves
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
