"""The stored tensors of a program's weights, read with numpy: checked when they are given, dequantized when used.

A matrix ``name`` [N, K] is stored as ``name.weight`` (float), or in groups of G along K (``codec.py``): ``name.scales``
[N, ⌈K/G⌉] float16 and ``name.codes`` uint8, [N, ⌈K/G⌉, G] of 8 bits or [N, ⌈K/G⌉, G/2] of 4; the shape says which. G 0
means that a row is one group. Or by tables: ``name.indices`` [N, K] uint8 and ``name.tables`` [N/n, entries] float16.

A side of a delta [R, n, K] is stored as float, or as R · n rows of codes of 8 bits with a scale each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import BundleError
from .codec import F32, Grouped, GroupSizes, Palette, code_shape, group_of, group_size_of
from .weights import Matrix, Weight, tensors

Array = npt.NDArray[np.generic]
I64 = npt.NDArray[np.int64]
_FLOATS = ("float32", "float16")
_NUMPY = {"F32": "<f4", "F16": "<f2", "U8": "u1"}
"""Types that a bundle stores."""
_PIECE = 1 << 20
"""Numbers of a matrix that are dequantized at a time: 4 MB in float32. They are used while they are in the cache, and
their memory is used again; memory that the system gives anew for each matrix took several times the arithmetic."""


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file; BundleError when it is damaged or has types that numpy has not."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    # The library looks for numpy's type by its name, and numpy has no bfloat16 and no float8.
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error


def map_tensors(path: Path) -> dict[str, Array]:
    """Return what ``read_tensors`` does, but mapped: unread parts take no memory. The file must not change
    meanwhile."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as checked:  # its own checks: offsets, overlaps, sizes
            names = set(checked.keys())
        memory = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
        header = json.loads(memory[8:start].tobytes())
        found: dict[str, Array] = {}
        for name in names:
            first, last = header[name]["data_offsets"]
            kind, shape = _NUMPY[header[name]["dtype"]], header[name]["shape"]
            found[name] = memory[start + first : start + last].view(kind).reshape(shape)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error
    return found


class StoredWeights:
    """The weights of a program. Arrays that are returned are read only: they may be the stored ones.

    Up to ``kept_bytes`` of dequantized matrices are kept, the first ones that were used: a model's matrices are
    used in turn, again and again, so that of a larger model the most recent ones would never be those that come
    next.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        stored: Mapping[str, Array],
        group_sizes: GroupSizes,
        kept_bytes: int = 512 << 20,
    ) -> None:
        """BundleError when a tensor is missing, or not of the kind and shape that ``weights`` want."""
        self.weights, self._group_sizes = weights, group_sizes
        self._stored, self._most = stored, kept_bytes
        self._kept: dict[tuple[str, int, int], F32] = {}
        self._coded: dict[str, Grouped | Palette] = {}
        self._rows_of: dict[str, int] = {}
        """Of a depth, in a side of a delta that is codes."""
        for full, tensor in tensors(weights):
            name = full.removesuffix(".weight")
            if tensor.kind == "matrix" and f"{name}.codes" in stored:
                self._coded[name] = self._grouped(name, *tensor.shape)
            elif tensor.kind == "delta" and f"{name}.codes" in stored and len(tensor.shape) == 3:
                depths, rows, columns = tensor.shape
                self._coded[name] = self._codes(name, depths * rows, columns, 0, (8,))
                self._rows_of[name] = rows
            elif tensor.kind == "matrix" and f"{name}.indices" in stored:
                self._coded[name] = self._palette(name, *tensor.shape)
            else:
                self._check(full, _FLOATS, tensor.shape)

    def _grouped(self, name: str, rows: int, columns: int) -> Grouped:
        size = self.group_size(name)
        group = group_of(columns, size)
        if group < 2 or group % 2:
            raise BundleError(f"{name} is quantized in groups of {size}; export the checkpoint again")
        return self._codes(name, rows, columns, size, (8, 4))

    def _codes(self, name: str, rows: int, columns: int, size: int, widths: tuple[int, ...]) -> Grouped:
        shapes = {bits: code_shape(rows, columns, size, bits) for bits in widths}
        self._check(f"{name}.codes", ("uint8",), *shapes.values())
        self._check(f"{name}.scales", _FLOATS, shapes[8][:2])
        codes = self._stored[f"{name}.codes"].astype(np.uint8, copy=False)
        scales = self._stored[f"{name}.scales"].astype(np.float16, copy=False)
        return Grouped(codes, scales, 8 if codes.shape == shapes[8] else 4, columns)

    def _palette(self, name: str, rows: int, columns: int) -> Palette:
        self._check(f"{name}.indices", ("uint8",), (rows, columns))
        tables = self._stored.get(f"{name}.tables", np.empty(0, np.float16)).astype(np.float16, copy=False)
        if tables.ndim != 2 or not len(tables) or rows % len(tables):
            raise BundleError(
                f"{name}.tables has shape {list(tables.shape)}, wanted a table for every so many of {rows} rows; "
                "export the checkpoint again"
            )
        return Palette(self._stored[f"{name}.indices"].astype(np.uint8, copy=False), tables)

    def _check(self, name: str, types: tuple[str, ...], *wanted: tuple[int, ...]) -> None:
        if name not in self._stored:
            raise BundleError(f"the weights have no {name} {list(wanted[0])}; export the checkpoint again")
        found, kind = self._stored[name].shape, self._stored[name].dtype.name
        if kind not in types:
            raise BundleError(f"{name} is {kind}, wanted {' or '.join(types)}; export the checkpoint again")
        if found not in wanted:
            shapes = " or ".join(str(list(w)) for w in wanted)
            raise BundleError(f"{name} has shape {list(found)}, wanted {shapes}; export the checkpoint again")

    def forget(self) -> None:
        """Drop the dequantized matrices that are kept; they are made again when they are used."""
        self._kept.clear()

    def matrix(self, name: str) -> Matrix:
        """Return the description of the matrix ``name``."""
        weight = self.weights[name]
        assert isinstance(weight, Matrix)
        return weight

    def group_size(self, name: str) -> int:
        """Return the group size of the codes of the matrix ``name``; 0: a row is one group."""
        return group_size_of(self._group_sizes, name)

    def quantized(self, name: str) -> bool:
        """Return whether the matrix ``name`` is stored as codes with scales."""
        return isinstance(self._coded.get(name), Grouped)

    def small(self, name: str) -> F32:
        """Return a vector or a bias by its full name, as float32."""
        return self._stored[name].astype(np.float32, copy=False)

    def delta(self, name: str, depth: int) -> F32:
        """Return one side of a delta at ``depth`` by its full name, [n, K] float32."""
        if name not in self._rows_of:
            found: F32 = self._stored[name][depth].astype(np.float32, copy=False)
            return found
        rows = self._rows_of[name]
        return self._coded[name].values(slice(depth * rows, (depth + 1) * rows))

    def rows(self, name: str, ids: I64) -> F32:
        """Return rows ``ids`` [n] of the matrix ``name`` as [n, K] float32."""
        if name in self._coded:
            return self._coded[name].values(ids)
        return self._stored[f"{name}.weight"][ids].astype(np.float32, copy=False)

    def pieces(self, name: str, first: int, last: int) -> Iterator[F32]:
        """Yield rows ``first`` to ``last`` − 1 of the matrix ``name`` [N, K], some at a time: each [n, K] float32."""
        rows = max(1, _PIECE // self.matrix(name).columns)
        for start in range(first, last, rows):
            yield self._piece(name, start, min(start + rows, last))

    def _piece(self, name: str, start: int, stop: int) -> F32:
        key = name, start, stop
        if key not in self._kept:
            pick = slice(start, stop)
            if name not in self._coded:
                stored = self._stored[f"{name}.weight"]
                found: F32 = stored[pick].astype(np.float32, copy=False)
                if stored.dtype == np.float32:
                    return found
            else:
                found = self._coded[name].values(pick)
            if sum(kept.nbytes for kept in self._kept.values()) + found.nbytes > self._most:
                return found
            self._kept[key] = found
        return self._kept[key]
