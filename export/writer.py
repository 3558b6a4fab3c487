"""A bundle is written into a hidden folder beside its place and gets its name in one rename, or never."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..runtime.bundle import sha256_of
from ..runtime.errors import ExportError, UsageError
from ..runtime.manifest import MANIFEST, File

_MARK = ".edgeloop-partial-"
_NEW, _OLD = "new", "old"  # in the hidden folder: the bundle to be, and the one that it replaces


def check_free(out: Path, force: bool) -> None:
    """UsageError when ``out`` exists and may not be replaced: only a bundle may, and only with ``force``."""
    try:
        if not out.exists():
            return
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror}") from error
    if not force:
        raise UsageError(f"{out} exists: choose another folder or pass --force to replace it")
    listed = _listed(out)
    if not listed:
        raise UsageError(f"{out} exists and is not a bundle: --force replaces bundles only")
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    if stranger := min((name for name in found if name not in listed), default=None):
        raise UsageError(
            f"{out} holds {stranger}, which is no part of the bundle: --force would delete it, move it away"
        )


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well, and disappears when it does not.

    Where ``out`` is a link, what it points to is written, and the link stays. ExportError when the file
    system refuses (full disk, no permission).
    """
    check_free(out, force)
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out.parent)
        hidden = Path(tempfile.mkdtemp(prefix=_MARK, dir=out.parent))
    except OSError as error:
        raise ExportError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        with _locked(hidden):
            (hidden / _NEW).mkdir()
            yield hidden / _NEW
            _sync(hidden / _NEW)
            check_free(out, force)
            _put_in_place(hidden, out)
    except OSError as error:
        raise ExportError(
            f"cannot write {out}: {error.strerror or error}; nothing was changed there"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _listed(folder: Path) -> set[str]:
    """The files of the bundle ``folder``; none when it is no bundle. One of an older format is a bundle too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return {MANIFEST, *manifest["files"]} if "edgeloop" in manifest else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _put_in_place(hidden: Path, out: Path) -> None:
    """Move the old bundle aside and the new one to its name."""
    old = hidden / _OLD / out.name
    if out.exists():
        old.parent.mkdir()
        out.rename(old)
    try:
        (hidden / _NEW).rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Take the lock of ``folder``, and tell whether that was possible. A killed process lets go of its locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except OSError:  # another process has it, or the file system has no locks
            taken = False
        yield taken
    finally:
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed exports left; a bundle that was moved aside gets its place back."""
    for folder in parent.glob(f"{_MARK}*"):
        with suppress(OSError), _locked(folder) as abandoned:
            if not abandoned:
                continue
            for old in (folder / _OLD).glob("*"):
                if not (parent / old.name).exists():
                    old.rename(parent / old.name)
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Everything below ``folder`` is on the disk before it gets its name."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def describe_files(folder: Path) -> dict[str, File]:
    """Size and hash of every file below ``folder``, by its path inside it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): File(path.stat().st_size, sha256_of(path)) for path in paths}
