"""A lane of a call, as the reference engine's ops see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...model.rotary import cos_sin
from ...model.rotation import Rotation
from ...model.stored import StoredWeights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Activations = Callable[[F32, int], F32]
"""(x [n, K], the group size of the matrix) → x as an engine rounds it before it multiplies."""
Results = Callable[[F32], F32]
"""What an op has made → what an engine keeps of it."""
Inputs = Callable[[str, int, F32], None]
"""(matrix, its first row that is multiplied, x [n, K]), before each product."""


@dataclass(frozen=True)
class Slot:
    """The rows of one cache that a lane owns: K and V [kv_heads, rows, head_dim], and the window that they keep."""

    keys: F32
    values: F32
    window: int | None = None


@dataclass(frozen=True)
class Lane:
    """n tokens of one sequence at one depth, and what ops read beside their values.

    ``positions`` [n]. ``cached``: T tokens that are in the slots. ``own``, ``first``: the slots of this depth and of
    depth 0, by the numbers of the caches. ``last_rows``: by the numbers of Shift, [1, D], or none before the first
    token. ``block``: how many tokens at the beginning of the sequence see each other where a mask says so.
    """

    weights: StoredWeights
    positions: I64
    depth: int = 0
    cached: int = 0
    own: Sequence[Slot] = ()
    first: Sequence[Slot] = ()
    last_rows: dict[int, F32] = field(default_factory=dict)
    block: int = 0
    activations: Activations | None = None
    results: Results | None = None
    tables_as: npt.DTypeLike = np.float32
    """The type in which the engine that is modelled keeps its rotary tables."""
    inputs: Inputs | None = None
    _turns: dict[Rotation, tuple[F32, F32]] = field(default_factory=dict)

    def cos_sin(self, by: Rotation) -> tuple[F32, F32]:
        """Return cos and sin [n, dims/2] of the tokens' positions."""
        if by not in self._turns:
            cos, sin = (
                table.astype(self.tables_as).astype(np.float32) for table in cos_sin(by, self.positions)
            )
            self._turns[by] = cos, sin
        return self._turns[by]

    def row(self, name: str, at: int | None) -> F32:
        """Return the vector ``name`` [size], of depth ``at`` or of the lane's where it has a row for each."""
        vector = self.weights.small(f"{name}.weight")
        return vector if vector.ndim == 1 else vector[self.depth if at is None else at]


def times(lane: Lane, x: F32, name: str, first: int, last: int) -> F32:
    """Return x [n, K] times rows ``first`` to ``last`` − 1 of a stored matrix: [n, last − first]."""
    if lane.inputs is not None:
        lane.inputs(name, first, x)
    if lane.activations is not None and lane.weights.quantized(name):
        x = lane.activations(x, lane.weights.group_size(name))
    return np.concatenate([x @ piece.T for piece in lane.weights.pieces(name, first, last)], axis=1)


def delta_times(lane: Lane, x: F32, name: str, depth: int) -> F32:
    """Return x [n, K] times one side of a delta at ``depth``, by its full name: [n, its rows]."""
    if lane.activations is not None and lane.weights.quantized(name):
        x = lane.activations(x, 0)  # a row is one group
    return x @ lane.weights.delta(name, depth).T
