"""Bundles on the disk: where one may be written, and how an existing one is replaced or changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.bundle.folder import Bundle, sha256_of
from ...runtime.bundle.manifest import MANIFEST, File
from ...runtime.bundle.signature import SIGNATURES
from ...runtime.errors import ExportError, UsageError
from .staging import staged


def check_free(out: Path, force: bool) -> None:
    """Raise UsageError when ``out`` exists and may not be replaced: only a bundle may, and only with ``force``."""
    try:
        if inside := next((p for p in out.absolute().parents if _listed(p)), None):
            raise UsageError(
                f"{out} would be inside the bundle {inside}, which lists its files; choose one beside it"
            )
        if not out.exists():
            return
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror}") from error
    if not force:
        raise UsageError(f"{out} exists: choose another folder or pass --force to replace it")
    listed = _listed(out)
    if not listed:
        raise UsageError(f"{out} exists and is not a bundle: --force replaces bundles only")
    found = (p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    if stranger := min((name for name in found if name not in listed), default=None):
        raise UsageError(
            f"{out} holds {stranger}, which is no part of the bundle: --force would delete it, move it away"
        )


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Yield a folder that becomes the bundle ``out`` when the block ends well; see ``staged`` and ``check_free``."""
    check_free(out, force)
    with staged(out, lambda: check_free(out, force)) as folder:
        yield folder


@contextmanager
def edited(bundle: Path) -> Iterator[Path]:
    """Yield a copy of ``bundle`` to change, which replaces it in one step when the block ends well.

    It is not signed any more. Its files are hard links where the file system has them, so replace them and never
    write into one. BundleError when the bundle is damaged. UsageError when this process stands in its folder, which
    is another one afterwards.
    """
    place = Path(os.path.realpath(bundle))
    if Path.cwd().is_relative_to(place):
        raise UsageError(
            f"{place} is replaced as a whole, and this command was started inside it; start it elsewhere"
        )
    Bundle.open(place)
    before = (place / MANIFEST).read_bytes()

    def unchanged() -> None:
        if (place / MANIFEST).read_bytes() != before:
            raise ExportError(f"{place} was changed by another command meanwhile; try again")

    with staged(place, unchanged) as folder:
        _link_all(place, folder)
        for name in SIGNATURES:  # of what it was before
            (folder / name).unlink(missing_ok=True)
        yield folder


def put(path: Path, data: bytes) -> None:
    """Replace the file ``path`` of a folder that ``edited`` gave."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)


def _link_all(source: Path, destination: Path) -> None:
    """Link everything in ``source`` to ``destination``. Links to files become what they lead to."""
    shutil.copymode(source, destination)
    for path in sorted(source.rglob("*")):
        there = destination / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            there.mkdir()
            shutil.copymode(path, there)
        elif path.is_file():
            link(Path(os.path.realpath(path)), there)
        else:
            raise ExportError(f"{path} is neither a file nor a folder; move it away")


def link(source: Path, destination: Path) -> None:
    """Give the file ``source`` a second name; copy it where that cannot be."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _listed(folder: Path) -> set[str]:
    """Return the files of the bundle ``folder``, of older formats too; none when it is no bundle."""
    try:
        path = folder / MANIFEST
        manifest = json.loads(path.read_bytes()) if path.is_file() else {}  # a pipe would be waited for
        return {MANIFEST, *SIGNATURES, *manifest["files"]} if "edgeloop" in manifest else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def describe_files(folder: Path) -> dict[str, File]:
    """Return size and hash of every file below ``folder``, by its path inside it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): File(path.stat().st_size, sha256_of(path)) for path in paths}
