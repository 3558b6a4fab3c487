"""Stored tensors as MIL constants: codes, scales, indices and tables as they are, everything else as float16.

Every array has a name of its own, the ``weight_id`` under which coremltools writes it once for all functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin
from safetensors import safe_open

from ....quant.recipe import Recipe
from ....runtime.errors import ExportError
from ....runtime.model.codec import Palette, around_zero
from ....runtime.model.program import Program

Array = npt.NDArray[Any]
Var = Any
"""A value of a MIL function; coremltools has no types."""
RowRange = tuple[int, int] | None


class Store:
    """The arrays of a weights file, by name, as the package stores them."""

    def __init__(self, path: Path, recipe: Recipe, program: Program) -> None:
        self.recipe, self.formats = recipe, recipe.formats(program.weights)
        self._file: Any = safe_open(path, framework="np")
        self._names = frozenset(self._file.keys())  # type: ignore[no-untyped-call]
        self._arrays: dict[str, Array] = {}

    def quantized(self, matrix: str) -> bool:
        """Return whether the matrix is stored as codes with scales."""
        return f"{matrix}.codes" in self._names

    def palettized(self, matrix: str) -> bool:
        """Return whether the matrix is stored as indices into tables."""
        return f"{matrix}.indices" in self._names

    def half(self, name: str, pick: int | RowRange = None) -> tuple[str, Array]:
        """Return (id, float16 array) of a float tensor, or of one repeat of it, or of some rows.

        ExportError for values that float16 does not hold.
        """
        key = name if pick is None else f"{name}.{pick if isinstance(pick, int) else f'{pick[0]}-{pick[1]}'}"
        if key not in self._arrays:
            value = self._file.get_tensor(name)
            if pick is not None:
                value = value[pick] if isinstance(pick, int) else value[slice(*pick)]
            with np.errstate(over="ignore"):
                half = np.ascontiguousarray(value, np.float16)
            if not np.isfinite(half).all():
                raise ExportError(
                    f"{name} has values up to {float(np.abs(value).max()):.2g}, and Core ML computes in float16, "
                    "which ends at 65504; export to another target"
                )
            self._arrays[key] = half
        return key, self._arrays[key]

    def codes(self, matrix: str, rows: RowRange) -> tuple[str, Array]:
        """Return (id, codes [N, ⌈K/G⌉·G]) around zero, marked int4 where that is what they are."""
        key = f"{matrix}.codes" if rows is None else f"{matrix}.codes.{rows[0]}-{rows[1]}"
        if key not in self._arrays:
            stored = self._file.get_tensor(f"{matrix}.codes")
            stored = stored if rows is None else stored[slice(*rows)]
            bits = self.formats[matrix].bits
            signed, as_int4 = around_zero(stored, bits).reshape(len(stored), -1), bits == 4
            self._arrays[key] = signed.astype(nptype_from_builtin(types.int4)) if as_int4 else signed
        return key, self._arrays[key]

    def palette(self, matrix: str, rows: RowRange) -> tuple[tuple[str, Array], tuple[str, Array]]:
        """Return (id, indices [N, K] marked uint4), (id, tables [N/n, 1, 16, 1]): n rows share a table."""
        part = "" if rows is None else f".{rows[0]}-{rows[1]}"
        keys = f"{matrix}.indices{part}", f"{matrix}.tables{part}"
        if keys[0] not in self._arrays:
            palette = Palette(*(self._file.get_tensor(f"{matrix}.{side}") for side in ("indices", "tables")))
            palette = palette if rows is None else palette.part(*rows)
            self._arrays[keys[0]] = palette.indices.astype(nptype_from_builtin(types.uint4))
            self._arrays[keys[1]] = palette.tables[:, None, :, None]
        return (keys[0], self._arrays[keys[0]]), (keys[1], self._arrays[keys[1]])


class Constants:
    """The constants of one MIL function, each made once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._made: dict[str, Var] = {}

    def half(self, name: str, pick: int | RowRange = None) -> Var:
        """Return a float tensor as float16; ``pick`` as in ``Store.half``."""
        return self.array(*self.store.half(name, pick))

    def matrix(self, name: str, rows: RowRange = None) -> Var:
        """Return a matrix [N, K], K padded to whole groups; ``rows``: first, and the one behind the last."""
        if not self.store.quantized(name) and not self.store.palettized(name):
            return self.half(f"{name}.weight", rows)
        key = name if rows is None else f"{name}.{rows[0]}-{rows[1]}"
        if key not in self._made:
            make = self._from_tables if self.store.palettized(name) else self._from_codes
            self._made[key] = make(name, rows)
        return self._made[key]

    def _from_codes(self, name: str, rows: RowRange) -> Var:
        code_id, codes = self.store.codes(name, rows)
        scale_id, scales = self.store.half(f"{name}.scales", rows)
        made = mb.constexpr_blockwise_shift_scale(data=codes, scale=scales)
        made.op.data.op.weight_id, made.op.scale.op.weight_id = code_id, scale_id
        return made

    def _from_tables(self, name: str, rows: RowRange) -> Var:
        (index_id, indices), (table_id, tables) = self.store.palette(name, rows)
        made = mb.constexpr_lut_to_dense(indices=indices, lut=tables)
        made.op.indices.op.weight_id, made.op.lut.op.weight_id = index_id, table_id
        return made

    def linear_by(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Return x [..., K] times weight [N, K], plus ``bias`` [N] where there is one: [..., N]."""
        if bias is not None:
            return mb.linear(x=x, weight=weight, bias=bias)
        out = mb.linear(x=x, weight=weight)
        # The builder adds a bias of zeros to every linear; they are stored once for each length.
        out.op.bias.op.weight_id = f"zeros.{weight.shape[0]}"
        return out

    def padded(self, x: Var, name: str, columns: int) -> Var:
        """Return x [..., K] followed by zeros, where the last group of the matrix ``name`` is longer than the row."""
        group = self.store.formats[name].group_size if self.store.quantized(name) else 0
        missing = -columns % group if group else 0
        if not missing:
            return x
        zeros = np.zeros((*x.shape[:-1], missing), np.float16)
        return mb.concat(values=[x, self.array(f"zeros.{x.shape[1]}x{missing}", zeros)], axis=-1)

    def array(self, key: str, array: Array) -> Var:
        """Return ``array`` under the id ``key``."""
        if key not in self._made:
            self._made[key] = mb.const(val=array)
            self._made[key].op.weight_id = key
        return self._made[key]
