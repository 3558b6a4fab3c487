"""An ONNX graph while it is written: nodes, constants, and weights in the bundle's one file.

Values of the program are [B, S, size] here, or [N, 1, size] in a packed graph, and [N, size] where only some rows are
left. Some are pending until something reads them, because the reader may do their work too: see ``values.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...runtime.engines.onnx.operators import MICROSOFT, OPERATORS
from ...runtime.model.codec import GroupSizes, group_size_of
from ...runtime.model.program import Program
from ..weights import TensorSpan, tensor_spans

OPSET, MICROSOFT_OPSET = 21, 1

_TYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "U8": ir.DataType.UINT8}
_GIVEN: dict[str, tuple[ir.DataType, tuple[str | int, ...]]] = {
    "ids": (ir.DataType.INT64, ("B", "S")),
    "rows": (ir.DataType.INT64, ("N",)),
    "depth": (ir.DataType.INT64, ("B",)),
    "row_depth": (ir.DataType.INT64, ("N",)),
    "positions": (ir.DataType.INT64, ("B", "S")),
    "types": (ir.DataType.INT64, ("B", "S")),
    "last": (ir.DataType.INT32, ("B",)),
    "longest": (ir.DataType.INT32, (1,)),
    "tokens": (ir.DataType.INT32, ("B",)),
    "fresh": (ir.DataType.INT64, (1,)),
    "spread": (ir.DataType.INT64, ("B", "S")),
    "spread_new": (ir.DataType.INT64, ("B", "S_new")),
    "kept": (ir.DataType.INT64, ("N",)),
}
"""The inputs beside states, rotations and caches; see ``runtime/engines/packed.py`` for the last three."""
_ORDER = (
    "ids",
    "state",
    "rows",
    "depth",
    "row_depth",
    "positions",
    "types",
    "last",
    "longest",
    "tokens",
    "fresh",
)
_PACKED = ("spread", "spread_new", "kept")


@dataclass(frozen=True)
class StageValue:
    """A value of the program, [..., size]. ``fresh``: only of the rows that get new K/V (see ``fresh.py``)."""

    value: ir.Value
    size: int
    fresh: bool = False


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a model: the file, where each is in it, and the group sizes of the codes."""

    file: Path
    tensor_spans: Mapping[str, TensorSpan]
    group_sizes: GroupSizes

    @staticmethod
    def open(file: Path, group_sizes: GroupSizes) -> Stored:
        """Return those of a file that ``WeightsWriter`` wrote."""
        return Stored(file, tensor_spans(file), group_sizes)

    def group_size(self, matrix: str) -> int:
        """Return the group size of the codes of ``matrix``; 0: a row is one group."""
        return group_size_of(self.group_sizes, matrix)


class Graph:
    """The graph of one stage of ``program``; ``packed`` as in ``runtime/engines/packed.py``."""

    def __init__(self, program: Program, stored: Stored, packed: bool = False) -> None:
        self.program, self.stored, self.packed = program, stored, packed
        self.lanes = True
        """Whether values are [B, S, size]; else [N, size], once rows were chosen."""
        self.shared = False
        """Whether the depths of this block share K/V."""
        self.present: dict[int, tuple[ir.Value, ir.Value]] = {}
        """K/V of the caches, as the graph leaves them."""
        self.inputs: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self._initializers: dict[str, ir.Value] = {}

    def node(
        self, kind: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Write a node and return its outputs."""
        if (domain, kind) not in OPERATORS:
            raise ValueError(
                f"{domain or 'ai.onnx'}.{kind} is not among the operators that a bundle may have"
            )
        made = ir.node(kind, inputs, attributes, domain=domain, num_outputs=outputs)
        self._nodes.append(made)
        return tuple(made.outputs)

    def one(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Write a node with one output and return that."""
        (made,) = self.node(kind, *inputs, domain=domain, **attributes)
        return made

    def fused(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Write a node of ONNX Runtime's domain with one output and return that."""
        return self.one(kind, *inputs, domain=MICROSOFT, **attributes)

    def constant(self, numbers: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """Return a small constant in the graph itself; equal ones are written once."""
        array = np.asarray(numbers, dtype)

        def make() -> ir.Value:
            name = f"constant_{len(self._initializers)}"
            self._initializers[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            return self._initializers[name]

        return self.once(("constant", array.dtype.str, array.shape, array.tobytes()), make)

    def numbers(self, *values: int) -> ir.Value:
        """Return a constant [n] int64: sizes, axes, bounds."""
        return self.constant(values, np.int64)

    def number(self, value: float) -> ir.Value:
        """Return a float32 scalar."""
        return self.constant(value, np.float32)

    def weight(
        self,
        name: str,
        rows: tuple[int, int] | None = None,
        shape: Sequence[int] | None = None,
        as_float: bool = False,
    ) -> ir.Value:
        """Return the stored tensor ``name``, or some of its rows, as ``shape``; cast to float32 if ``as_float``."""
        place = self.stored.tensor_spans[name]
        if rows is not None and rows != (0, place.shape[0]):
            place, name = place.rows(*rows), f"{name}[{rows[0]}:{rows[1]}]"
        sizes = tuple(shape or place.shape)
        value = self.once(("weight", name, sizes), lambda: self._external(name, place, sizes))
        return self.cast(value) if as_float and place.dtype != "F32" else value

    def _external(self, name: str, place: TensorSpan, sizes: tuple[int, ...]) -> ir.Value:
        if name in self._initializers:
            name = f"{name}[{','.join(map(str, sizes))}]"  # the same bytes in another shape
        kind, file = _TYPES[place.dtype], self.stored.file
        tensor = ir.ExternalTensor(
            file.name,
            place.offset,
            place.length,
            kind,
            shape=ir.Shape(sizes),
            name=name,
            base_dir=file.parent,
        )
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(sizes), type=ir.TensorType(kind))
        self._initializers[name] = value
        return value

    def cast(self, value: ir.Value) -> ir.Value:
        """Return ``value`` as float32; the cast is written once."""
        return self.once(("cast", id(value)), lambda: self.one("Cast", value, to=ir.DataType.FLOAT))

    def once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """Return what ``make`` writes; it is called the first time that ``key`` is used."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def has(self, name: str) -> bool:
        """Return whether there is a stored tensor ``name``."""
        return name in self.stored.tensor_spans

    def given(self, name: str) -> ir.Value:
        """Return the input ``name``."""
        dtype, shape = _GIVEN[name]
        if self.packed and name == "ids":
            shape = ("N", 1)
        return self._input(name, dtype, shape)

    def state(self) -> ir.Value:
        """Return the carries of each row, side by side."""
        lead = ("N", 1) if self.packed else ("B", "S")
        return self._input("state", ir.DataType.FLOAT, (*lead, self.program.width))

    def depth(self) -> ir.Value:
        """Return the depth of each lane [B], in a packed graph of each row [N]."""
        return self.given("row_depth" if self.packed else "depth")

    def cos_sin(self, number: int, pairs: int) -> tuple[ir.Value, ir.Value]:
        """Return cos and sin [P, pairs] of rotation ``number``."""
        tail = f".{number}" if number else ""
        cos, sin = (self._input(f"{n}{tail}", ir.DataType.FLOAT, ("P", pairs)) for n in ("cos", "sin"))
        return cos, sin

    def past(self, cache: int, kv_heads: int, head_dim: int) -> tuple[ir.Value, ir.Value]:
        """Return K and V [B, K heads, C, head_dim] of the cache with that number."""
        shape = ("B", kv_heads, "C", head_dim)
        key, value = (
            self._input(f"past.{cache}.{side}", ir.DataType.FLOAT, shape) for side in ("key", "value")
        )
        return key, value

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[str | int]) -> ir.Value:
        if name not in self.inputs:
            self.inputs[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        return self.inputs[name]

    def reshaped(self, x: ir.Value, *sizes: int) -> ir.Value:
        """Return x [..., n] as [..., *sizes]."""
        return self.one("Reshape", x, self.numbers(*(0, 0) if self.lanes else (0,), *sizes))

    def model(self, outputs: Mapping[str, tuple[ir.Value, Sequence[str | int]]]) -> ir.Model:
        """Return the finished graph; ``outputs`` by name, each with its shape, then the caches."""
        made = list[ir.Value]()
        present = {
            f"present.{cache}.{side}": (value, self.inputs[f"past.{cache}.{side}"].shape or ())
            for cache, pair in sorted(self.present.items())
            for side, value in zip(("key", "value"), pair, strict=True)
        }
        for name, (value, shape) in {**outputs, **present}.items():
            if value.name in self.inputs or any(value is other for other in made):
                value = self.one("Identity", value)
            value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
            made.append(value)
        used = [value for value in self._initializers.values() if value.uses()]
        graph = ir.Graph(
            sorted(self.inputs.values(), key=_place_of),
            made,
            nodes=self._nodes,
            initializers=used,
            opset_imports={"": OPSET, MICROSOFT: MICROSOFT_OPSET},
            name="stage",
        )
        for node in graph:
            node.name = None
            if node.op_type == "SkipSimplifiedLayerNormalization":
                for output in node.outputs[1:]:  # two are for training, the last is the sum
                    if not (output.uses() or output.is_graph_output()):
                        output.name = ""
        return ir.Model(graph, ir_version=10, producer_name="edgeloop")


def _place_of(value: ir.Value) -> tuple[int, int, str]:
    """Return the sort key of an input: first those that a stage computes on, then lanes, rotations, caches, packing."""
    name = value.name or ""
    first = name.partition(".")[0]
    if first in _ORDER:
        return 0, _ORDER.index(first), ""
    if first in ("cos", "sin"):
        return 1, int(name.partition(".")[2] or 0), first
    if first == "past":
        return 2, int(name.split(".")[1]), name
    return 3, _PACKED.index(first), ""
