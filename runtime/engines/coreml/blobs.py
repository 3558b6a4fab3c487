"""weight.bin: arrays behind offsets.

A file header of 64 bytes, then for each array, at a multiple of 64, a header of 64 bytes: 0xDEADBEEF, the type, the
number of bytes and where they begin (coremltools mlmodel/src/MILBlob/Blob/StorageFormat.hpp). Two int4 share a byte,
the low one first.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ExportError
from ...model.codec import around_zero, unpack

_SENTINEL = 0xDEADBEEF
_TYPES: dict[int, tuple[str, int]] = {
    1: ("float16", 16),
    2: ("float32", 32),
    3: ("uint8", 8),
    4: ("int8", 8),
    8: ("int4", 4),
    11: ("uint4", 4),
    14: ("int32", 32),
}
"""By the type number in the header, the name and the bits."""


class Blobs:
    """The arrays of a weight.bin, mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise ExportError(f"{path}: {error}; export the package again") from error

    def read(self, offset: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the array behind the header at ``offset``; 4-bit types come as int8 or uint8.

        ExportError when it is not whole.
        """
        header = self._bytes[offset : offset + 24]
        if len(header) < 24 or int(header[:4].view(np.uint32)[0]) != _SENTINEL:
            raise ExportError(f"{self._path}: no array at {offset}; export the package again")
        number = int(header[4:8].view(np.uint32)[0])
        length, start = (int(x) for x in header[8:24].view(np.uint64))
        name, bits = _TYPES.get(number, ("", 0))
        if not name:
            raise ExportError(f"{self._path}: type {number} of the array at {offset} is not known")
        data, count = self._bytes[start : start + length], prod(shape)
        if len(data) != length or length != -(-count * bits // 8):
            raise ExportError(
                f"{self._path}: the array at {offset} has {len(data)} bytes, wanted {-(-count * bits // 8)} for "
                f"{list(shape)} of {name}; export the package again"
            )
        if bits != 4:
            return data.view(name).reshape(shape)
        # Signed ones are two's complement: the same bits as with an offset but the highest.
        values = around_zero(data ^ np.uint8(0x88), 4) if name == "int4" else unpack(data, 4)
        return values[:count].reshape(shape)
