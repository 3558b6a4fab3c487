"""A bundle is written into a hidden folder beside its place and gets its name in one rename, or never."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import ExportError, UsageError
from ..runtime.manifest import MANIFEST, File

_MARK = ".edgeloop-partial-"


def check_free(out: Path, force: bool) -> None:
    """UsageError when ``out`` exists and may not be replaced."""
    if not out.exists():
        return
    if not force:
        raise UsageError(f"{out} exists: choose another folder or pass --force to replace it")
    if not out.is_dir() or not (out / MANIFEST).is_file():
        raise UsageError(f"{out} exists and is not a bundle: --force replaces bundles only")


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well, and disappears when it does not.

    ExportError when the file system refuses (full disk, no permission).
    """
    check_free(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out.parent)
        partial = Path(tempfile.mkdtemp(prefix=f"{_MARK}{os.getpid()}-", dir=out.parent))
        partial.chmod(0o755)
    except OSError as error:
        raise ExportError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        yield partial
        check_free(out, force)
        if out.exists():
            old = partial.with_name(partial.name + "-old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(out)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what killed exports left: partial folders whose process is gone."""
    for path in parent.glob(f"{_MARK}*"):
        pid = path.name.removeprefix(_MARK).split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def describe_files(folder: Path) -> dict[str, File]:
    """Size and hash of every file below ``folder``, by its path inside it, synced to disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = File(bytes=path.stat().st_size, sha256=digest)
    return files
