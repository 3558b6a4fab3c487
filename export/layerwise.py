"""A text that goes through a model layer by layer: all its windows through one layer before the next.

A matrix then sees its whole text at once, so that only its own sums and the states between two layers are in memory,
and it can be replaced by its codes before what comes after it has been computed. The loop's depths follow each other
as in a run: a layer of the block is met once a depth, an epilogue and the head once a read-out. Where a router decides
(``choices.py``) a depth is given the tokens that it sends there, and the text is read out at the end alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..runtime.engines.backend import F32, I64
from ..runtime.engines.reference.engine import split
from ..runtime.engines.reference.lane import Inputs, Lane, Slot
from ..runtime.engines.reference.ops import run
from ..runtime.model import ops
from ..runtime.model.ops import AttendTwice, Experts, Linear, Op
from ..runtime.model.program import Program, Stage
from ..runtime.model.sizes import head_sizes
from ..runtime.model.stored import Array, StoredWeights
from ..runtime.model.transform import at_depth
from .choices import Choices, Routed

KEPT_BYTES = 128 << 20
"""Of matrices that were codes: a matrix is used by every window before the next one is."""


@dataclass(frozen=True)
class Step:
    """Ops of a stage at a depth, of which only the first may multiply by a matrix.

    ``inputs`` and ``outputs`` are those of the stage, ``needed`` the values that are read after the step. ``first`` and
    ``last``: whether it is that of the stage at this depth.
    """

    stage: str
    depth: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    needed: frozenset[str]
    first: bool
    last: bool

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices that its first op multiplies by."""
        return matrices(self.ops[0]) if self.ops else ()


def matrices(op: Op) -> tuple[str, ...]:
    """Return the matrices that ``op`` multiplies by."""
    return (op.weight,) if isinstance(op, Linear) else (op.up, op.down) if isinstance(op, Experts) else ()


def steps(program: Program, routed: bool = False) -> list[Step]:
    """Return a text's way through ``program``: the prologue, then every depth with its read-out; ``routed``: only the
    last one has one."""
    found = [*_cut(program.prologue, "prologue", 0)]
    for depth in range(program.depths):
        found += _cut(at_depth(program, depth), "block", depth)
        if routed and depth < program.depths - 1:
            continue
        found += _cut(program.epilogue, "epilogue", depth)
        found += _cut(program.head, "head", depth)
    return found


def _cut(stage: Stage, name: str, depth: int) -> Iterator[Step]:
    starts = [0, *(n for n, op in enumerate(stage.ops) if n and matrices(op)), len(stage.ops)]
    spans = list(pairwise(starts)) if stage.ops else [(0, 0)]
    for number, (start, stop) in enumerate(spans):
        later = {value for op in stage.ops[stop:] for value in ops.reads(op)}
        yield Step(
            name,
            depth,
            stage.inputs,
            stage.outputs,
            stage.ops[start:stop],
            frozenset(later.union(stage.outputs)),
            number == 0,
            number == len(spans) - 1,
        )


class Stream:
    """The windows of a text between two steps, and the weights that they are run with."""

    def __init__(
        self,
        program: Program,
        windows: Sequence[I64],
        group_sizes: Mapping[str, int],
        choices: Sequence[Choices] = (),
    ) -> None:
        """``windows``: token ids [n] each, no longer than the context. ``group_sizes``: of codes, by matrix.

        ``choices``: the router's of each window, which several streams may have; none: every token runs every depth.
        """
        self.program, self._windows, self._group_sizes = program, windows, group_sizes
        self._carries = tuple(carry.width for carry in program.loop.carries)
        self._head = head_sizes(program)
        self._states: list[F32] = []  # between the loop's depths
        self._read_out: list[F32] = []  # behind the epilogue
        self._values: list[dict[str, Any]] = [{} for _ in windows]
        twice = (isinstance(op, AttendTwice) for block in program.loop.blocks for op in block.ops)
        self._keeps_first = program.depths > 1 and (program.shares_kv or any(twice))
        self._first: list[list[Slot]] = [[] for _ in windows]
        self._choices = choices
        self._routed: list[Routed] = []  # of each window, in the loop of a routed model
        self._weights: StoredWeights

    def use(self, stored: Mapping[str, Array]) -> None:
        """Run what follows with the tensors ``stored``; the matrices of the last ones are forgotten."""
        self._weights = StoredWeights(self.program.weights, stored, self._group_sizes, KEPT_BYTES)

    def inputs(self, step: Step, number: int) -> list[tuple[str, int, F32]]:
        """Return (matrix, the number of its copy, x [n, K]) of each product of the first op of ``step`` in a window,
        and change nothing."""
        self.enter(step)
        op, values = step.ops[0], self._values[number]
        counted: I64 | slice = slice(None)
        if self._routed and step.stage == "block":
            if not len(self._routed[number].positions):
                return []
            counted = self._routed[number].counted
        found: list[tuple[str, int, F32]] = []
        if isinstance(op, Linear):
            depth = step.depth if op.at is None else op.at
            found.append(
                (op.weight, depth if self.program.matrix(op.weight).copies > 1 else 0, values[op.x][counted])
            )
        else:

            def keep(name: str, first: int, x: F32) -> None:
                found.append((name, first // self.program.matrix(name).rows, x))

            run(op, self._lane(step, number, keep), dict(values))
        return found

    def run(self, step: Step) -> None:
        """Take every window through ``step``; of the head nobody wants the logits."""
        self.enter(step)
        for number, values in enumerate(self._values):
            if not self._tokens(step, number).size:
                continue
            if step.stage == "head" and step.last:
                break
            lane = self._lane(step, number)
            for op in step.ops:
                run(op, lane, values)
            for name in set(values) - step.needed:
                del values[name]
            if self._keeps_first and step.stage == "block" and step.depth == 0:
                self._first[number] = list(lane.own)
        if step.last:
            self._leave(step)

    def enter(self, step: Step) -> None:
        """Let every window enter the stage of ``step``, if it has not yet."""
        if not step.first or self._values[0]:
            return
        for number, ids in enumerate(self._windows):
            if step.stage == "prologue":
                self._first[number] = []
                hosts = {"ids": ids, "positions": np.arange(len(ids)), "types": np.zeros_like(ids)}
                self._values[number] = {name: hosts[name] for name in step.inputs}
                continue
            states = self._read_out if step.stage == "head" else self._states
            sizes = self._head if step.stage == "head" else self._carries
            state = self._chosen(number, step.depth) if step.stage == "block" else states[number]
            self._values[number] = dict(zip(step.inputs, split(state, sizes), strict=True))

    def _chosen(self, number: int, depth: int) -> F32:
        """Return the states of a window that ``depth`` is given."""
        state = self._states[number]
        if not self._choices:
            return state
        if depth == 0:
            self._routed[number:] = [Routed(self._choices[number], self.program.shares_kv, state)]
        return self._routed[number].enter(depth)

    def _tokens(self, step: Step, number: int) -> I64:
        """Return the positions of a window's tokens in the stage of ``step``."""
        if self._routed and step.stage == "block":
            return self._routed[number].positions
        return np.arange(len(self._windows[number]))

    def _leave(self, step: Step) -> None:
        if step.stage == "block" and self._routed:
            for number, (routed, values) in enumerate(zip(self._routed, self._values, strict=True)):
                if self._tokens(step, number).size:
                    routed.leave(values[step.outputs[0]])
                if step.depth == self.program.depths - 1:
                    self._states[number] = routed.output()
        elif step.stage != "head":
            made = [
                np.concatenate([values[name] for name in step.outputs], axis=1) for values in self._values
            ]
            if step.stage == "epilogue":
                self._read_out = made
            else:
                self._states = made
        self._values = [{} for _ in self._windows]

    def _lane(self, step: Step, number: int, inputs: Inputs | None = None) -> Lane:
        positions = self._tokens(step, number)
        n = len(positions)
        own = list(self._first[number]) if step.stage == "block" and step.depth == 0 else []
        if not own and step.stage != "head":
            shapes = [(c.kv_heads, n, c.head_dim) for c in self.program.caches(step.stage)]
            # Of memory that is not written nothing is taken: a step uses one of them at most.
            own = [Slot(np.empty(shape, np.float32), np.empty(shape, np.float32)) for shape in shapes]
        return Lane(
            self._weights,
            positions,
            depth=step.depth,
            own=own,
            first=self._first[number] if step.stage == "block" and self._first[number] else own,
            block=1,  # where the tokens of a prompt see each other, none sees what it is to predict
            inputs=inputs,
        )
