"""A safetensors file written as a stream, and where each tensor lies in it.

The format is eight bytes of header length, a JSON header, then the tensors without gaps
(https://github.com/huggingface/safetensors, README "Format"). The library's own writer wants all tensors in
memory at once; this one reserves room for the header, so a model larger than memory can be written, and
ONNX external data can point straight into the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..runtime.errors import ExportError

_DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8"}
_ENTRY = 224  # bytes of JSON that one tensor needs at most: names here are under 80 characters
_PAGE = 4096


@dataclass(frozen=True)
class TensorSpan:
    """The position of a tensor's bytes in the file, and their type: F32, F16 or U8."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> TensorSpan:
        """Return the span of rows ``start`` … ``stop`` − 1."""
        size = self.length // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return TensorSpan(self.offset + start * size, (stop - start) * size, self.dtype, shape)


class WeightsWriter:
    """Writes a file: ``with WeightsWriter(path, count) as w: w.add(name, array)``, at most ``count`` times."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._room = -(-(8 + _ENTRY * count) // _PAGE) * _PAGE - 8
        self._header: dict[str, Any] = {}
        self._end = 0

    def __enter__(self) -> WeightsWriter:
        self._file: BinaryIO = self._path.open("wb")
        self._file.seek(8 + self._room)
        return self

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Append one tensor, which has rows."""
        self.stream(name, (array,))

    def stream(self, name: str, pieces: Iterable[npt.NDArray[Any]]) -> None:
        """Append the tensor of ``pieces`` [n, …], one at least, which are asked for one after another."""
        start, rows = self._end, 0
        for piece in pieces:
            data = np.ascontiguousarray(piece)
            kind, shape = data.dtype.name, data.shape
            rows += len(data)
            self._file.write(data.data)
            self._end += data.nbytes
        self._header[name] = {
            "dtype": _DTYPES[kind],
            "shape": [rows, *shape[1:]],
            "data_offsets": [start, self._end],
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                header = json.dumps(self._header, separators=(",", ":")).encode()
                if len(header) > self._room:
                    raise ExportError(
                        f"{len(self._header)} tensors need a header of more than {self._room} bytes"
                    )
                self._file.seek(0)
                self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))


def tensor_spans(path: Path) -> dict[str, TensorSpan]:
    """Return the span of each tensor, for a file that WeightsWriter wrote."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    start = 8 + size
    return {
        name: TensorSpan(
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            entry["dtype"],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }
