"""Where everything lies in a file: what follows from a program and from how its weights are stored, and nothing else.

So a file is written from it, and one that is there is compared with it: every number of its header and tables.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...errors import BundleError
from ...model.codec import GroupSizes, code_shape, group_of, group_size_of
from ...model.program import Program
from ...model.weights import Matrix, Vector, sibling
from .format import (
    ALIGNMENT,
    HEADER,
    MAGIC,
    MATRIX,
    PART,
    RECORDS,
    TILE,
    VECTOR,
    VERSION,
    Storage,
    TableNumber,
    filled_up,
)
from .tables import Tables
from .tiles import code_bytes, float_bytes

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """How a matrix is stored, and the deltas of its parts. ``group``: G of its codes, 0 of floats."""

    storage: Storage
    group: int = 0
    deltas: Storage = Storage.F32


@dataclass(frozen=True)
class Section:
    """The bytes of a file that hold the stored tensor ``tensor``.

    ``form``: tiles of floats [K][16] (scales too), tiles of codes, or plain numbers. ``blocks``: how many of the
    tensor's rows, or numbers, lie together before the next multiple of 16. ``columns``: K, of scales the groups.
    ``group``: G of codes.
    """

    tensor: str
    form: Literal["floats", "codes", "numbers"]
    storage: Storage
    blocks: tuple[int, ...]
    columns: int
    offset: int
    group: int = 0

    @property
    def length(self) -> int:
        """Bytes."""
        if self.form == "numbers":
            return sum(4 * filled_up(n, TILE) for n in self.blocks)
        size = code_bytes if self.form == "codes" else float_bytes
        return sum(size(self.storage, n, self.columns) for n in self.blocks)


@dataclass(frozen=True)
class Layout:
    """A whole file: its first bytes, with header and tables, the tensors behind them, and where its text begins."""

    head: bytes
    sections: tuple[Section, ...]
    text: int
    file_bytes: int


def stored_as(program: Program, stored: Mapping[str, Array], group_sizes: GroupSizes) -> dict[str, Stored]:
    """How each matrix of ``program`` lies in ``stored``, a bundle's tensors by name.

    BundleError for what a file cannot hold.
    """
    found: dict[str, Stored] = {}
    for name, weight in program.weights.items():
        if not isinstance(weight, Matrix):
            continue
        kinds = {_delta_kind(stored, sibling(name, part)) for part in weight.deltas} or {Storage.F32}
        if f"{name}.indices" in stored:
            raise BundleError(f"{name} is stored in tables of values, which the lane engine does not read")
        codes = stored.get(f"{name}.codes")
        if codes is None:
            half = stored[f"{name}.weight"].dtype == np.float16
            found[name] = Stored(Storage.F16 if half else Storage.F32, 0, kinds.pop())
            continue
        size = group_size_of(group_sizes, name)
        eight = codes.shape == code_shape(weight.copies * weight.rows, weight.columns, size, 8)
        group = group_of(weight.columns, size)
        found[name] = Stored(Storage.I8 if eight else Storage.I4, group, kinds.pop())
    return found


def _delta_kind(stored: Mapping[str, Array], part: str) -> Storage:
    if f"{part}.lora_a.codes" in stored:
        return Storage.I8
    return Storage.F16 if stored[f"{part}.lora_a"].dtype == np.float16 else Storage.F32


ROUNDING = 2.0**-49
"""What powers of float64 may differ by, from processor to processor: eight units in the last place."""


def layout(
    program: Program, stored: Mapping[str, Stored], text_bytes: int = 0, frequencies: Array | None = None
) -> Layout:
    """The file of ``program`` whose matrices are ``stored``, by name, with a text section of ``text_bytes``.

    ``frequencies``: those of a file, float64, which stay where they are what this computer computes but for rounding:
    the last bit of a power is another one on other processors.
    """
    made = Tables(program)
    weights = _Weights(program, stored)
    tables = {**made.tables, **weights.tables}
    own = tables[TableNumber.FREQUENCIES]
    if (
        frequencies is not None
        and frequencies.shape == own.shape
        and np.allclose(frequencies, own, rtol=ROUNDING, atol=0)
    ):
        tables[TableNumber.FREQUENCIES] = frequencies
    start = HEADER.itemsize
    header = np.zeros((), HEADER)
    for number in TableNumber:
        table = tables[number]
        header["tables"][number] = (start if len(table) else 0, len(table))
        start += filled_up(table.nbytes, ALIGNMENT)
    sections, end = weights.placed(start)
    header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER.itemsize
    header["file_bytes"], header["data_start"] = end + text_bytes, start
    header["text"], header["text_bytes"] = end if text_bytes else 0, text_bytes
    for name, value in made.header.items():
        header[name] = value
    parts = [b"", *(_filled(tables[number].tobytes()) for number in TableNumber)]
    header["checksum"] = zlib.crc32(b"".join([header.tobytes(), *parts]))
    parts[0] = header.tobytes()
    return Layout(b"".join(parts), sections, end, end + text_bytes)


class _Weights:
    """The tables of weights, and what of them points at tensors."""

    def __init__(self, program: Program, stored: Mapping[str, Stored]) -> None:
        matrices, parts, vectors, names = list[Array](), list[Array](), list[Array](), bytearray()

        def named(name: str) -> int:
            at = len(names)
            names.extend(name.encode() + b"\0")
            return at

        self._wanted: list[tuple[Section, TableNumber, int, str | None]] = []
        """Sections without an offset yet, and the field of the record that names it; None: it lies behind the last."""
        for name, weight in program.weights.items():
            if isinstance(weight, Vector):
                self._number(
                    f"{name}.weight", (weight.size,) * (weight.rows or 1), TableNumber.VECTORS, len(vectors)
                )
                vectors.append(np.array((named(name), weight.size, weight.rows or 0, 0, 0), VECTOR))
                continue
            each = stored[name]
            record = (
                named(name), each.storage, weight.columns, each.group, weight.copies, weight.depths,
                len(parts), len(weight.parts), 0, 0, 0, 0,
            )  # fmt: skip
            self._matrix(name, weight, each, len(matrices))
            matrices.append(np.array(record, MATRIX))
            for part, rows in weight.parts.items():
                rank = weight.deltas[part].rank if part in weight.deltas else 0
                whole = sibling(name, part)
                if rank:
                    self._delta(whole, weight, part, each.deltas, len(parts))
                kind = each.deltas if rank else Storage.F32
                parts.append(np.array((named(whole), rows, rank, kind, 0, 0, 0), PART))
        made = {
            TableNumber.MATRICES: matrices,
            TableNumber.PARTS: parts,
            TableNumber.VECTORS: vectors,
            TableNumber.NAMES: list(names),
        }
        self.tables = {number: np.array(rows, RECORDS[number]) for number, rows in made.items()}

    def placed(self, start: int) -> tuple[tuple[Section, ...], int]:
        """The sections, from ``start`` on, and where the file ends; the records name them afterwards."""
        sections = []
        for section, table, row, field in self._wanted:
            place = Section(**{**vars(section), "offset": start})
            if field is not None:
                self.tables[table][row][field] = start
            start += filled_up(place.length, ALIGNMENT)
            sections.append(place)
        return tuple(sections), start

    def _matrix(self, name: str, weight: Matrix, each: Stored, row: int) -> None:
        blocks, table = tuple(weight.parts.values()) * weight.copies, TableNumber.MATRICES
        if each.group:
            groups = code_shape(1, weight.columns, each.group, 8)[1]
            self._add(
                f"{name}.codes", "codes", each.storage, blocks, weight.columns, table, row, "data", each.group
            )
            self._add(f"{name}.scales", "floats", Storage.F16, blocks, groups, table, row, "scales")
        else:
            self._add(f"{name}.weight", "floats", each.storage, blocks, weight.columns, table, row, "data")
        if weight.bias:
            self._number(f"{name}.bias", blocks, table, row, "bias")

    def _delta(self, name: str, weight: Matrix, part: str, kind: Storage, row: int) -> None:
        delta, table, depths = weight.deltas[part], TableNumber.PARTS, weight.depths
        rows = weight.parts[part]
        for side, height, width in (("a", delta.rank, weight.columns), ("b", rows, delta.rank)):
            full, blocks = f"{name}.lora_{side}", (height,) * depths
            if kind != Storage.I8:
                self._add(full, "floats", kind, blocks, width, table, row, side)
                continue
            self._add(f"{full}.codes", "codes", kind, blocks, width, table, row, side, width)
            self._add(f"{full}.scales", "floats", Storage.F16, blocks, 1, table, row, None)
        if delta.rescaled:
            self._number(f"{name}.lora_scale", (rows,) * depths, table, row, "scale")

    def _number(
        self, tensor: str, blocks: tuple[int, ...], table: TableNumber, row: int, field: str = "data"
    ) -> None:
        self._add(tensor, "numbers", Storage.F32, blocks, 1, table, row, field)

    def _add(
        self,
        tensor: str,
        form: Literal["floats", "codes", "numbers"],
        storage: Storage,
        blocks: tuple[int, ...],
        columns: int,
        table: TableNumber,
        row: int,
        field: str | None,
        group: int = 0,
    ) -> None:
        self._wanted.append((Section(tensor, form, storage, blocks, columns, 0, group), table, row, field))


def _filled(data: bytes) -> bytes:
    return data.ljust(filled_up(len(data), ALIGNMENT), b"\0")
