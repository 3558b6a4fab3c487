"""The contents of a program's package: its functions, its states, and the stages that the functions are made of.

``embed`` runs the layers before the loop and ``head`` those after it. States hold C tokens: the context and one chunk
more, so that the padding of a chunk never runs over the end; padded tokens leave rows behind the last valid one, which
are overwritten before anything sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ....runtime.engines.coreml.layout import Layout
from ....runtime.model.ops import Linear
from ....runtime.model.program import Program, Stage
from ....runtime.model.rotary import RotaryTables
from ....runtime.model.rotation import Rotation
from ....runtime.model.transform import at_depth, caching, keys_values

F16 = npt.NDArray[np.float16]

CHUNK = 16
"""Tokens of a prefill call."""
_ALIGN = 32  # sizes of states that Core ML's units like


@dataclass(frozen=True)
class PackagePlan:
    """The package of ``program``."""

    program: Program
    chunk: int = CHUNK

    @cached_property
    def at_once(self) -> bool:
        """Whether the model reads a text at once, as encoders do. Then every function takes the context's tokens."""
        return self.program.encoder

    @property
    def most(self) -> int:
        """Tokens of the longest call."""
        return self.program.context_length if self.at_once else self.chunk

    @property
    def capacity(self) -> int:
        """C: tokens of a state."""
        if self.at_once:
            return self.most
        return -(-(self.program.context_length + self.chunk - 1) // _ALIGN) * _ALIGN

    @cached_property
    def cos_sin(self) -> dict[Rotation, tuple[F16, F16]]:
        """cos and sin [context, dims/2] of every position: the ANE has no arithmetic to make them from."""
        return {by: self._tables(by) for by in self.program.rotations}

    @property
    def fills(self) -> bool:
        """Whether a token that left early can get K/V. With a sliding window too: a token keeps its row here."""
        program = self.program
        return (
            program.depths > 1
            and not program.shares_kv
            and not program.own_matrices
            and bool(program.caches("block"))
        )

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions, the default one first."""
        depths = range(self.program.depths)
        if self.at_once:
            return ("decode_all", "embed", *(f"decode_d{d}" for d in depths), "head")
        fills = [f"kvfill_d{d}" for d in depths[:-1]] if self.fills else []
        return ("decode_all", "prefill", "embed", *(f"decode_d{d}" for d in depths), *fills, "head")

    @cached_property
    def layout(self) -> Layout:
        """The row of each cache in the states."""
        return Layout(self.program)

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Shape of every state, by name; the same in all functions."""
        return self.layout.shapes(self.capacity)

    @cached_property
    def blocks(self) -> tuple[Stage, ...]:
        """The block of each depth as it runs there."""
        return tuple(at_depth(self.program, depth) for depth in range(self.program.depths))

    @cached_property
    def fillers(self) -> tuple[Stage, ...]:
        """For each depth, the ops that make K/V of a token that left before it."""
        return tuple(keys_values(block) for block in self.blocks) if self.fills else ()

    @cached_property
    def behind(self) -> Stage:
        """The ops that make K/V in the layers after the loop."""
        return caching(self.program.epilogue)

    @cached_property
    def _cuts(self) -> dict[str, set[int]]:
        program, cuts = self.program, dict[str, set[int]]()
        for stage in (
            program.prologue,
            *self.blocks,
            *self.fillers,
            self.behind,
            program.epilogue,
            program.head,
        ):
            for op in stage.ops:
                if isinstance(op, Linear):
                    cuts.setdefault(op.weight, set()).update((op.first, op.first + len(op.y)))
        return cuts

    def pieces(self, op: Linear) -> Iterator[tuple[int, int]]:
        """Yield the parts of its matrix that ``op`` makes, as pieces: (first, the one behind the last).

        Each piece is an array of its own. No function makes a part of one, so arrays serve every function that
        uses them, and are stored once.
        """
        first, last = op.first, op.first + len(op.y)
        bounds = sorted(cut for cut in self._cuts[op.weight] if first <= cut <= last)
        yield from pairwise(bounds)

    def _tables(self, by: Rotation) -> tuple[F16, F16]:
        context = self.program.context_length
        cos, sin = RotaryTables(by, np.float16).rows(context)
        return cos[:context].astype(np.float16), sin[:context].astype(np.float16)
