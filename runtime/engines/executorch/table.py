"""The embedding, looked up by the host in a mapped file: a graph would hold a second copy of a tied head's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError
from ...model.codec import around_zero, from_bfloat16, scaled
from ..backend import F32, I64
from .layout import EmbeddingTable, checksum


class Embedding:
    """Rows of a table, times ``scale``."""

    def __init__(self, path: Path, table: EmbeddingTable, count: int, width: int, scale: float = 1.0) -> None:
        """``count`` rows of ``width``. BundleError when the file is too short, or holds other values than it should."""
        self._kind, self._scale = table.kind, np.float32(scale)
        self._scales: npt.NDArray[Any] | None = None
        groups = table.groups
        size = {"float32": width * 4, "int4": width // 2, "int8": width}[table.kind]
        dtype = {"float32": "<f4", "int4": "u1", "int8": "i1"}[table.kind]
        try:
            self._values = _mapped(path, dtype, table.values, (count, size // np.dtype(dtype).itemsize))
            if table.kind != "float32":
                kind = "<u2" if table.scale_type == "bfloat16" else "<f4"
                self._scales = _mapped(path, kind, table.scales, (count, groups))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: no embedding in it ({error}); copy the bundle again") from error
        parts = [self._values] if self._scales is None else [self._values, self._scales]
        if checksum(part.data for part in parts) != table.check:
            raise BundleError(
                f"{path}: the embedding is not where the layout has it; they come from two exports, copy the bundle "
                "again"
            )

    def close(self) -> None:
        """Unmap the file; no rows can be looked up any more."""
        self._values, self._scales = np.empty((0, 1), np.float32), None

    def rows(self, ids: I64) -> F32:
        """Return rows ``ids`` [n] as [n, D] float32."""
        rows = self._rows(ids)
        return rows if self._scale == 1 else rows * self._scale

    def _rows(self, ids: I64) -> F32:
        picked = self._values[ids]
        if self._scales is None:
            return np.asarray(picked, np.float32)
        scales = self._scales[ids]
        floats = from_bfloat16(scales) if scales.dtype == np.uint16 else scales
        codes = around_zero(picked, 4) if self._kind == "int4" else picked
        return scaled(codes, floats)


def _mapped(path: Path, dtype: str, offset: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)  # of which a row costs less
