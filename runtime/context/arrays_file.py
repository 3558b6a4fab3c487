"""Arrays and a text in one safetensors file, written at once or not at all, and read without trusting it.

The text is the metadata ``edgeloop.session``. The last tensor is ``sha256`` [32] of all bytes before it, so that a file
that was cut, or in which a bit turned, is refused. Arrays are streamed: no more than one of them is in memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import SessionError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
KEY, DIGEST = "edgeloop.session", "sha256"
MOST_HEADER = 64 << 20
"""Bytes of a header: names and places of arrays, and a conversation in words; a real one has some hundred thousand."""
TYPES: dict[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "I8": np.int8,
    "I32": np.int32,
    "U8": np.uint8,
}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class ArraysWriter:
    """Writes arrays in the order in which they were announced."""

    def __init__(self, file: BinaryIO, text: bytes, shapes: Mapping[str, tuple[str, Shape]]) -> None:
        """``shapes``: type (of ``TYPES``) and shape of each array by its name."""
        self._file, self._hash = file, hashlib.sha256()
        self._left = list(shapes.items())
        header: dict[str, Any] = {"__metadata__": {KEY: text.decode()}}
        end = 0
        for name, (kind, shape) in [*self._left, (DIGEST, ("U8", (32,)))]:
            start, end = end, end + prod(shape) * np.dtype(TYPES[kind]).itemsize
            header[name] = _Entry(kind, shape, (start, end))
        packed = msgspec.json.encode(header)
        packed += b" " * (-len(packed) % 8)
        self._write(len(packed).to_bytes(8, "little") + packed)

    def put(self, array: Array) -> None:
        """Write the next array."""
        name, (kind, shape) = self._left.pop(0)
        assert array.shape == shape, name
        self._write(np.ascontiguousarray(array, TYPES[kind]).tobytes())

    def finish(self) -> None:
        """Write the digest, when all arrays are written."""
        assert not self._left
        self._file.write(self._hash.digest())

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)


class ArraysReader:
    """Reads what ``ArraysWriter`` wrote. SessionError, one line, for everything else."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file, self._hash = file, hashlib.sha256()
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(self._read(8, size), "little")
        if not 2 <= length <= MOST_HEADER:
            raise self.refusal("it is not a saved session", "give a file that a session was saved in")
        data = self._read(length, size)
        try:
            header = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
            self.text = metadata.get(KEY, "").encode()
            """The text."""
            entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise self.refusal("its header cannot be read") from error
        if not self.text:
            raise self.refusal("it is not a saved session", "give a file that a session was saved in")
        end = 0
        for name, entry in entries.items():
            kind = TYPES.get(entry.dtype)
            start, last = entry.data_offsets
            if kind is None or min(entry.shape, default=0) < 0 or start != end:
                raise self.refusal(f"{name[:40]} does not follow on the array before it")
            end += prod(entry.shape) * np.dtype(kind).itemsize
            if end != last or end > size:
                raise self.refusal(f"{name[:40]} has another size than its header says")
        if 8 + length + end != size or [*entries][-1:] != [DIGEST] or entries[DIGEST].shape != (32,):
            raise self.refusal(f"it has {size} bytes, its header describes {8 + length + end}")
        del entries[DIGEST]
        self._entries = entries

    @property
    def shapes(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of each array by its name, in the order of the file."""
        return {name: (entry.dtype, entry.shape) for name, entry in self._entries.items()}

    def take(self) -> Array:
        """Return the next array, a fresh one."""
        entry = self._entries.pop(next(iter(self._entries)))
        count = entry.data_offsets[1] - entry.data_offsets[0]
        return np.frombuffer(bytearray(self._read(count, count)), TYPES[entry.dtype]).reshape(entry.shape)

    def finish(self) -> None:
        """Check, when all arrays were taken, the digest. SessionError unless they are those that were written."""
        assert not self._entries
        digest = self._hash.digest()
        if self._read(32, 32) != digest:
            raise self.refusal("its SHA-256 is another one than it says: it is damaged or was changed")

    def refusal(self, why: str, instead: str = "save the session again") -> SessionError:
        """Return the error that says ``why`` the file cannot be used, and what to do ``instead``."""
        return SessionError(f"{self.path}: {why}; {instead}")

    def _read(self, count: int, size: int) -> bytes:
        data = self._file.read(count) if count <= size else b""
        if len(data) != count:
            raise self.refusal("it ends too early")
        self._hash.update(data)
        return data


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that becomes ``path`` once it is whole and on the disk; before that, ``path`` stays as it is.

    SessionError when it cannot be written.
    """
    handle, name = -1, ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        name = ""
        if os.name != "nt":  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise SessionError(
            f"cannot write {path}: {error.strerror}; choose another place or make room there"
        ) from error
    finally:
        if name:
            with suppress(OSError):
                os.unlink(name)


@contextmanager
def reading(path: Path) -> Iterator[ArraysReader]:
    """Yield a reader of the file ``path``; SessionError when there is none, or it is not a saved session."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise SessionError(f"{path} is no plain file; give one that a session was saved in")
        with path.open("rb") as file:
            yield ArraysReader(path, file)
    except OSError as error:
        raise SessionError(
            f"cannot read {path}: {error.strerror}; give a file that a session was saved in"
        ) from error
