"""A ``.safetensors`` file, its header checked before the library reads it.

The library checks that tensors neither overlap nor leave gaps and that shapes fit their bytes; a header that is
out of proportion, or that names a tensor twice, is refused here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...runtime.errors import CheckpointError
from ...runtime.wording import reason
from .situations import what_file

MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors; the library's own bound is 100 MB, which is 2 GB once parsed
MAX_DIMENSIONS = 8


class SafetensorsFile:
    """A ``.safetensors`` file. Names that were dropped as ties (``save_model`` notes them) are kept as aliases."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = _state(path)
            _check_header(path)
            # A file whose header and size disagree is refused here, before any tensor is touched.
            self._file: Any = safe_open(path, framework="pt")
            stored = frozenset(self._file.keys())  # type: ignore[no-untyped-call]
            notes: dict[str, str] = self._file.metadata() or {}  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            if found := what_file(path):
                raise CheckpointError(found) from error
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({reason(error)}); copy or download it again"
            ) from error
        self._alias = {a: b for a, b in notes.items() if a not in stored and b in stored}
        self.names = stored | self._alias.keys()

    def _slice(self, name: str) -> Any:
        return self._file.get_slice(self._alias.get(name, name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the stored dtype of a tensor, as safetensors names it."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor in its stored dtype.

        The file is mapped anew for it: what is read of a mapping stays in memory, and a file that stays mapped would be
        there as a whole in the end.

        Raises:
            CheckpointError: the file has been written anew since it was opened.
        """
        if _state(self._path) != self._state:
            raise CheckpointError(f"{self._path} was changed while it was read; start again when it is whole")
        with safe_open(self._path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(self._alias.get(name, name))
            return tensor

    def first_row(self, name: str) -> torch.Tensor:
        """Return the first row of a tensor, or a scalar, in its stored dtype."""
        row: torch.Tensor = self._slice(name)[:1] if self.shape(name) else self.read(name)
        return row

    def storage(self, name: str) -> object:
        """Return what is equal for tensors that share their bytes."""
        return (self._path, self._alias.get(name, name))


def _state(path: Path) -> tuple[int, int, int]:
    """Return what differs once a file was written anew or replaced."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_header(path: Path) -> None:
    """Raise ValueError for a header that no model has; other faults are left to the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} wanted")
        header = json.loads(file.read(length), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if name != "__metadata__" and not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS):
            raise ValueError(f"{name!r:.80} has no shape of at most {MAX_DIMENSIONS} dimensions")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} occurs twice")
    return table
