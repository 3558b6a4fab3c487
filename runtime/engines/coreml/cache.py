"""The K/V of sequences in Core ML's states: a set of states each, whose rows are the tokens' positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...model.program import Program
from ..kv import KVCache, LayerRows, row_sizes
from .layout import Layout

Array = npt.NDArray[Any]


class HoldsStates(Protocol):
    """Makes states, and opens them to the host (``Runner``)."""

    def new_states(self) -> Any:
        """Return zeroed states of one sequence."""

    def read_state(self, states: Any, name: str) -> Array:
        """Return the state ``name`` of ``states``; who changes it writes it back."""

    def write_state(self, states: Any, name: str, value: Array) -> None:
        """Make ``value`` the state ``name``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StatesCache(KVCache):
    """Caches whose rows are in Core ML's ``states``, those of the sequences that were run.

    A window is a mask here, and rows stay where they are.
    """

    runner: HoldsStates
    layout: Layout
    reserved: int
    """Bytes of the states of all sequences."""
    states: dict[int, Any] = field(default_factory=dict)

    @staticmethod
    def empty(
        program: Program,
        runner: HoldsStates,
        shapes: Mapping[str, tuple[int, ...]],
        sequences: int,
        capacity: int,
    ) -> StatesCache:
        """Return caches of ``sequences`` × ``capacity`` tokens; states of ``shapes`` are made for a sequence when it
        is run."""
        return StatesCache(
            stages={},
            capacity=capacity,
            rows=capacity,
            slots=program.kv_slots,
            window=None,
            row_sizes=row_sizes(program),
            runner=runner,
            layout=Layout(program),
            reserved=sequences * sum(2 * prod(shape) for shape in shapes.values()),
        )

    def close(self) -> None:
        """Let go of all states."""
        self.states.clear()

    def states_of(self, sequence: int) -> Any:
        """Return the states of ``sequence``, zeroed when they are first used."""
        if sequence not in self.states:
            self.states[sequence] = self.runner.new_states()
        return self.states[sequence]

    def copy_rows(
        self, stage: str, slot: int, source: KVCache, source_slot: int, first: int, count: int
    ) -> None:
        """Copy rows ``first`` … of a slot of ``source``, of the same engine, to the same rows of ``slot``."""
        self.write_rows(stage, slot, first, source.read_rows(stage, source_slot, first, count))

    def read_rows(self, stage: str, slot: int, first: int, count: int) -> list[LayerRows]:
        """Return copies of rows ``first`` … of a slot of ``stage``: K and V [K heads, count, head_dim] of each
        layer."""
        sequence, places = self._places(stage, slot)
        held = self._read(sequence, places)
        found = [held[name][row, :, first : first + count].astype(np.float32) for name, row in places]
        return list(zip(found[::2], found[1::2], strict=True))

    def write_rows(self, stage: str, slot: int, first: int, rows: Sequence[LayerRows]) -> None:
        """Put ``rows``, as ``read_rows`` gives them, into the slot from row ``first`` on."""
        sequence, places = self._places(stage, slot)
        held = self._read(sequence, places)
        for (name, row), new in zip(places, (side for pair in rows for side in pair), strict=True):
            held[name][row, :, first : first + new.shape[1]] = new
        for name, value in held.items():
            self.runner.write_state(self.states_of(sequence), name, value)

    @property
    def number_bits(self) -> int:
        """Of float16."""
        return 16

    @property
    def nbytes(self) -> int:
        """Bytes reserved: the states of all sequences, as long as the package makes them."""
        return self.reserved

    def _places(self, stage: str, slot: int) -> tuple[int, list[tuple[str, int]]]:
        """The sequence of ``slot``, and the state and its row of each cache of ``stage``, of K and then of V."""
        sequence, depth = divmod(slot, self.slots if stage == "block" else 1)
        places = (self.layout.place(stage, i, depth) for i in range(self.layout.caches(stage)))
        return sequence, [(name, place.row) for place in places for name in (place.keys, place.values)]

    def _read(self, sequence: int, places: list[tuple[str, int]]) -> dict[str, Array]:
        """Return copies of the states of ``places``."""
        states = self.states_of(sequence)
        return {
            name: np.array(self.runner.read_state(states, name))
            for name in dict.fromkeys(name for name, _ in places)
        }
