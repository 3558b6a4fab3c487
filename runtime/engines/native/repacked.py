"""Bundles that were exported to onnx only, in the lane engine: packed once, and kept in the user's cache folder.

A kept file is called after the weights' hash, the program and the file's version. Whenever it is opened its header and
tables are compared with the program, as those of a bundle's own file are, and its bytes with their hash. The files that
were not used for longest go when all of them take more than ``MOST_BYTES``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import msgspec

from ...bundle.folder import Bundle, sha256_of
from ...errors import EngineError
from ...model.stored import map_tensors
from .file import LanesFile, write_lanes
from .format import VERSION

log = logging.getLogger(__name__)
SOURCE = "onnx"
"""The target whose weights are packed: they are the codes and scales of every target."""
MOST_BYTES = 8 << 30


def repacked(bundle: Bundle) -> Path:
    """The file of ``bundle``, made if it is not kept whole; EngineError where it cannot be written."""
    target, program = bundle.manifest.targets[SOURCE], bundle.manifest.program
    weights = bundle.manifest.files[target.weights].sha256
    key = hashlib.sha256(f"{VERSION} {weights} ".encode() + msgspec.json.encode(program)).hexdigest()[:32]
    folder = cache_folder()
    path = folder / f"{key}.lanes"
    try:
        if _is_whole(path):
            LanesFile(path, program)
            os.utime(path)
            return path
        log.info("packing %s for the lane engine", bundle.folder)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            write_lanes(fresh, program, map_tensors(bundle.path(target.weights)), bundle.group_sizes)
            LanesFile(fresh, program)
            digest = _digest(fresh)
            digest.write_text(sha256_of(fresh), encoding="ascii")
            digest.replace(_digest(path))  # another process may have made the same
            fresh.replace(path)
        _bound(folder, path)
    except OSError as error:
        raise EngineError(
            f"engine native packs {bundle.folder} into {folder}, which failed ({error.strerror}); make room there, "
            "set XDG_CACHE_HOME, or export with --target native"
        ) from error
    return path


def cache_folder() -> Path:
    """The folder of packed files, made if it is not there."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification of XDG_CACHE_HOME: a relative path is to be ignored.
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
        folder = root / "edgeloop" / "lanes"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"engine native has no folder for packed bundles ({error}); set XDG_CACHE_HOME to a folder of your own, or "
            "export with --target native"
        ) from error
    return folder


def _is_whole(path: Path) -> bool:
    """Return whether the file is there, and what was written."""
    digest = _digest(path)
    if not path.is_file() or not digest.is_file():
        return False
    if sha256_of(path) == digest.read_text(encoding="ascii"):
        return True
    log.warning("%s is damaged and is made anew", path)
    return False


def _digest(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _bound(folder: Path, kept: Path) -> None:
    """Remove the files that were not used for longest, but for ``kept``, until the rest is small enough."""
    others = [path for path in folder.glob("*.lanes") if path != kept]
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in others]
    room = MOST_BYTES - kept.stat().st_size
    for _, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)
            _digest(path).unlink(missing_ok=True)
