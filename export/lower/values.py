"""The values of a stage by name, some of them not made yet.

Fusion is a look at what a value would be made of: a norm of a sum adds too, an attention turns q and k itself and takes
them side by side as one matrix gives them. What is read by anything else is made then, on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...runtime.model.ops import Rotate
from .graph import Graph, StageValue


@dataclass(frozen=True, eq=False)
class Joint:
    """The outputs ``names`` of one matrix, side by side in ``rows``, with their ``sizes``."""

    rows: StageValue
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Output ``name`` of ``joint``."""

    joint: Joint
    name: str


@dataclass(frozen=True)
class Sum:
    """a + b."""

    a: str
    b: str


@dataclass(frozen=True)
class Rotated:
    """``op.x``, turned."""

    op: Rotate


Value = StageValue | Part | Sum | Rotated


class Values:
    """Of one stage, while its graph is written."""

    def __init__(self, graph: Graph, turn: Callable[[Graph, Values, Rotate], StageValue]) -> None:
        """``turn`` writes a rotation that no attention does."""
        self.graph, self._turn = graph, turn
        self._values: dict[str, Value] = {}

    def __setitem__(self, name: str, value: Value) -> None:
        self._values[name] = value

    def peek(self, name: str) -> Value:
        """The value as it is, made or not."""
        return self._values[name]

    def __getitem__(self, name: str) -> StageValue:
        """The value, made now if it was not."""
        value = self._values[name]
        if isinstance(value, Part):
            self._split(value.joint)
        elif isinstance(value, Sum):
            a, b = self[value.a], self[value.b]
            self._values[name] = StageValue(self.graph.one("Add", a.value, b.value), a.size, a.fresh)
        elif isinstance(value, Rotated):
            self._values[name] = self._turn(self.graph, self, value.op)
        made = self._values[name]
        assert isinstance(made, StageValue)
        return made

    def size(self, name: str) -> int:
        """Columns of the value, made or not."""
        value = self._values[name]
        if isinstance(value, StageValue):
            return value.size
        if isinstance(value, Part):
            return value.joint.sizes[value.joint.names.index(name)]
        return self.size(value.a if isinstance(value, Sum) else value.op.x)

    def together(self, *names: str) -> StageValue | None:
        """Those values side by side, if one matrix gave them and nothing else, in this order."""
        parts = [self._values[name] for name in names]
        first = parts[0]
        if isinstance(first, Part) and first.joint.names == names:
            return first.joint.rows
        return None

    def _split(self, joint: Joint) -> None:
        graph, sizes = self.graph, joint.sizes
        equal = len(set(sizes)) == 1
        inputs = [joint.rows.value] if equal else [joint.rows.value, graph.numbers(*sizes)]
        attributes: dict[str, Any] = {"num_outputs": len(sizes)} if equal else {}
        parts = graph.node("Split", *inputs, outputs=len(sizes), axis=-1, **attributes)
        for name, value, size in zip(joint.names, parts, sizes, strict=True):
            self._values[name] = StageValue(value, size, joint.rows.fresh)
