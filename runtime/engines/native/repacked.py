"""Bundles that were exported to onnx only, in the lane engine: packed once, and kept in the user's cache folder.

A file that is kept is one of many: those that were not used for longest go when together they take more than
``MOST_BYTES``. Its name is made of the weights' hash, of the program and of the file's version; its header and tables are
checked against the program whenever it is opened, like those of a bundle's own file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import msgspec

from ...bundle.folder import Bundle
from ...errors import BundleError, EngineError
from ...model.stored import map_tensors
from .file import LanesFile, write_lanes
from .format import VERSION

log = logging.getLogger(__name__)
SOURCE = "onnx"
"""The target whose weights are packed: they are the codes and scales of every target."""
MOST_BYTES = 8 << 30


def repacked(bundle: Bundle) -> Path:
    """The file of ``bundle``, made if it is not kept; EngineError where it cannot be written."""
    target, program = bundle.manifest.targets[SOURCE], bundle.manifest.program
    weights = bundle.manifest.files[target.weights].sha256
    key = hashlib.sha256(f"{VERSION} {weights} ".encode() + msgspec.json.encode(program)).hexdigest()[:32]
    folder = cache_folder()
    path = folder / f"{key}.lanes"
    try:
        if path.is_file():
            try:
                LanesFile(path, program)
            except BundleError:
                log.warning("%s is damaged and is made anew", path)
            else:
                os.utime(path)
                return path
        log.info("packing %s for the lane engine", bundle.folder)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            group = bundle.manifest.quantization.group_size
            write_lanes(fresh, program, map_tensors(bundle.path(target.weights)), group)
            LanesFile(fresh, program)
            fresh.replace(path)
        _bound(folder, path)
    except OSError as error:
        raise EngineError(
            f"engine native packs {bundle.folder} into {folder} ({error.strerror}); make room there, set XDG_CACHE_HOME, "
            "or export with --target native"
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


def _bound(folder: Path, kept: Path) -> None:
    """Remove the files that were not used for longest, but for ``kept``, until the rest is small enough."""
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.lanes") if path != kept]
    room = MOST_BYTES - kept.stat().st_size
    for _, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)
