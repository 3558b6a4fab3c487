"""The values of a stage by name, some of them pending.

Fusion depends on how a value would be made: a norm of a sum adds too, an attention rotates q and k itself and takes
them side by side as one matrix gives them. A pending value that is read by anything else is made then, on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...runtime.model.ops import Rotate
from .graph import Graph, StageValue


@dataclass(frozen=True, eq=False)
class MatrixOutputs:
    """The outputs ``names`` of one matrix, side by side in ``rows``, with their ``sizes``."""

    rows: StageValue
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class MatrixOutput:
    """The output ``name`` of ``outputs``."""

    outputs: MatrixOutputs
    name: str


@dataclass(frozen=True)
class PendingSum:
    """a + b, which is not written yet."""

    a: str
    b: str


@dataclass(frozen=True)
class PendingRotation:
    """``op.x`` rotated, which is not written yet."""

    op: Rotate


Value = StageValue | MatrixOutput | PendingSum | PendingRotation


class Values:
    """The values of one stage, while its graph is written."""

    def __init__(self, graph: Graph, rotate_now: Callable[[Graph, Values, Rotate], StageValue]) -> None:
        """``rotate_now`` writes a rotation that no attention does."""
        self.graph, self._rotate_now = graph, rotate_now
        self._values: dict[str, Value] = {}

    def __setitem__(self, name: str, value: Value) -> None:
        self._values[name] = value

    def pending(self, name: str) -> Value:
        """Return the value as it is, written or not."""
        return self._values[name]

    def __getitem__(self, name: str) -> StageValue:
        """Return the value, which is written now if it was not."""
        value = self._values[name]
        if isinstance(value, MatrixOutput):
            self._split(value.outputs)
        elif isinstance(value, PendingSum):
            a, b = self[value.a], self[value.b]
            self._values[name] = StageValue(self.graph.one("Add", a.value, b.value), a.size, a.fresh)
        elif isinstance(value, PendingRotation):
            self._values[name] = self._rotate_now(self.graph, self, value.op)
        made = self._values[name]
        assert isinstance(made, StageValue)
        return made

    def size(self, name: str) -> int:
        """Return the columns of the value, written or not."""
        value = self._values[name]
        if isinstance(value, StageValue):
            return value.size
        if isinstance(value, MatrixOutput):
            return value.outputs.sizes[value.outputs.names.index(name)]
        return self.size(value.a if isinstance(value, PendingSum) else value.op.x)

    def together(self, *names: str) -> StageValue | None:
        """Return those values side by side, if one matrix gave them and nothing else, in this order; else None."""
        parts = [self._values[name] for name in names]
        first = parts[0]
        if isinstance(first, MatrixOutput) and first.outputs.names == names:
            return first.outputs.rows
        return None

    def _split(self, outputs: MatrixOutputs) -> None:
        graph, sizes = self.graph, outputs.sizes
        equal = len(set(sizes)) == 1
        inputs = [outputs.rows.value] if equal else [outputs.rows.value, graph.numbers(*sizes)]
        attributes: dict[str, Any] = {"num_outputs": len(sizes)} if equal else {}
        parts = graph.node("Split", *inputs, outputs=len(sizes), axis=-1, **attributes)
        for name, value, size in zip(outputs.names, parts, sizes, strict=True):
            self._values[name] = StageValue(value, size, outputs.rows.fresh)
