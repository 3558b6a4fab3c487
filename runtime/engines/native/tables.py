"""A program as the tables of a file: stages, ops and values as numbers, one function for each op.

What the ops' numbers mean is in src/format.h. Offsets of tensors are still 0 here; ``layout.py`` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model import ops
from ...model.program import STAGES, Program, Stage
from ...model.rotary import frequencies
from ...model.rotation import Yarn
from ...model.sizes import head_sizes, kept_sizes, sizes
from ...model.transform import at_depth, keys_values
from ...model.weights import Matrix
from ..backend import can_fill
from .format import (
    CACHE,
    DEPTH,
    NONE,
    OP,
    ROTATION,
    STAGE,
    Flag,
    Function,
    Host,
    Mask,
    Norm,
    OpKind,
    TableNumber,
)

Array = npt.NDArray[Any]
Fields = dict[str, Any]


class Numbers:
    """The numbers by which ops name weights and rotations."""

    def __init__(self, program: Program) -> None:
        weights = program.weights
        self._matrices = _numbered(name for name, each in weights.items() if isinstance(each, Matrix))
        self._vectors = _numbered(name for name, each in weights.items() if not isinstance(each, Matrix))
        self._rotations = {by: number for number, by in enumerate(program.rotations)}

    def matrix(self, name: str) -> int:
        """Of MATRICES."""
        return self._matrices[name]

    def vector(self, name: str | None) -> int:
        """Of VECTORS, or NONE."""
        return NONE if name is None else self._vectors[name]

    def rotation(self, op: ops.Rotate) -> int:
        """Of ROTATIONS."""
        return self._rotations[op.by]


def _embed(op: ops.Embed, of: Numbers) -> Fields:
    return {"weights": [of.matrix(op.table)], "factors": [op.scale]}


def _norm(op: ops.Norm, of: Numbers) -> Fields:
    return {
        "function": Norm[op.kind.upper()],
        "weights": [of.vector(op.weight), of.vector(op.bias)],
        "numbers": [op.groups],
        "factors": [op.eps],
    }


def _linear(op: ops.Linear, of: Numbers) -> Fields:
    return {"weights": [of.matrix(op.weight)], "numbers": [op.first]}


def _rotate(op: ops.Rotate, of: Numbers) -> Fields:
    return {"flags": Flag.PAIRS if op.pairs else 0, "numbers": [op.heads, of.rotation(op)]}


def _attend(op: ops.Attend, of: Numbers) -> Fields:
    cache = NONE if op.cache is None else op.cache
    return {
        "flags": Flag.FIRST_SLOT if op.slot == "first" else 0,
        "numbers": [op.heads, op.kv_heads, op.head_dim, cache, op.window or 0, Mask[op.mask.upper()]],
        "factors": [op.scale, op.cap or 0.0],
    }


def _attend_twice(op: ops.AttendTwice, of: Numbers) -> Fields:
    return {"numbers": [op.heads, op.kv_heads, op.head_dim, op.cache, op.window], "factors": [op.scale]}


def _attend_learned(op: ops.AttendLearned, of: Numbers) -> Fields:
    return {
        "weights": [of.vector(op.keys), of.vector(op.values)],
        "numbers": [op.heads, op.kv_heads, op.head_dim],
        "factors": [op.scale],
    }


def _act(op: ops.Act, of: Numbers) -> Fields:
    return {"function": Function[op.function.upper()]}


def _plain(op: ops.Op, of: Numbers) -> Fields:
    return {}


def _scale(op: ops.Scale, of: Numbers) -> Fields:
    return {"weights": [of.vector(op.weight)], "factors": [op.factor, op.offset]}


def _softcap(op: ops.Softcap, of: Numbers) -> Fields:
    return {"factors": [op.cap]}


def _slice(op: ops.Slice, of: Numbers) -> Fields:
    return {"numbers": [op.start, op.stop]}


def _shift(op: ops.Shift, of: Numbers) -> Fields:
    return {"numbers": [op.cache]}


def _experts(op: ops.Experts, of: Numbers) -> Fields:
    return {
        "function": Function[op.function.upper()],
        "flags": (Flag.GATED if op.gated else 0) | (Flag.RENORMALISED if op.renormalised else 0),
        "weights": [of.matrix(op.up), of.matrix(op.down)],
        "numbers": [op.top],
    }


FIELDS: Mapping[type, Callable[[Any, Numbers], Fields]] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linear,
    ops.Rotate: _rotate,
    ops.Attend: _attend,
    ops.AttendTwice: _attend_twice,
    ops.AttendLearned: _attend_learned,
    ops.Act: _act,
    ops.Add: _plain,
    ops.Mul: _plain,
    ops.Scale: _scale,
    ops.Softcap: _softcap,
    ops.Concat: _plain,
    ops.Slice: _slice,
    ops.Shift: _shift,
    ops.Experts: _experts,
}
"""What an op's record holds beside its kind, its depth and its values. The engine has no other ops."""


class Tables:
    """The tables of a program's stages, loop, caches and rotations, and the numbers of its header."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._numbers = Numbers(program)
        self._stages: list[Array] = []
        self._known: dict[tuple[Stage, tuple[int, ...]], int] = {}
        self._ops: list[Array] = []
        self._operands: list[int] = []
        self._values: list[int] = []
        carries = [carry.width for carry in program.loop.carries]
        hosts = [Host[name.upper()] for name in program.prologue.inputs]
        self.header: Fields = {
            "vocab_size": program.vocab_size,
            "context_length": program.context_length,
            "token_types": program.token_types,
            "prologue": self._stage(program.prologue, [0] * len(hosts), hosts),
        }
        fills = can_fill(program)
        schedule = []
        for depth in range(program.depths):
            block = at_depth(program, depth)
            fill = self._stage(keys_values(block), carries) if fills else NONE
            schedule.append((self._stage(block, carries), fill))
        self.header |= {
            "epilogue": self._stage(program.epilogue, carries),
            "head": self._stage(program.head, head_sizes(program)),
            "deeper": program.depths - 1 if program.loop.open_ended else NONE,
            "shares_kv": int(program.shares_kv),
            **self._of_stages(),
        }
        first = np.cumsum([0, *(by.dims // 2 for by in program.rotations)])
        rotations = [
            (by.dims, at, by.scaling.amplitude if isinstance(by.scaling, Yarn) else 1.0)
            for by, at in zip(program.rotations, first.tolist(), strict=False)
        ]
        waves = [frequencies(by) for by in program.rotations]
        self.tables: dict[TableNumber, Array] = {
            TableNumber.STAGES: np.array(self._stages, STAGE),
            TableNumber.OPS: np.array(self._ops, OP),
            TableNumber.OPERANDS: np.array(self._operands, "<u4"),
            TableNumber.VALUES: np.array(self._values, "<u4"),
            TableNumber.SCHEDULE: np.array(schedule, DEPTH),
            TableNumber.CARRIES: np.array(carries, "<u4"),
            TableNumber.CACHES: np.array(
                [(c.kv_heads, c.head_dim, c.window or 0, 0) for name in STAGES for c in program.caches(name)],
                CACHE,
            ),
            TableNumber.KEPT: np.array(
                [size for name in STAGES for size in kept_sizes(program, name)], "<u4"
            ),
            TableNumber.ROTATIONS: np.array(rotations, ROTATION),
            TableNumber.FREQUENCIES: np.concatenate([np.empty(0), *waves]).astype("<f8"),
        }

    def _of_stages(self) -> Fields:
        """Which caches and kept rows are whose."""
        found: Fields = {}
        for what, counts in (
            ("caches", [len(self.program.caches(name)) for name in STAGES]),
            ("kept", [len(kept_sizes(self.program, name)) for name in STAGES]),
        ):
            first = np.cumsum([0, *counts])[:-1].tolist()
            found[what] = list(zip(first, counts, strict=True))
        return found

    def _stage(self, stage: Stage, given: Sequence[int], hosts: Sequence[int] = ()) -> int:
        """The number of ``stage``, whose inputs have the sizes ``given``; the same one for an equal stage."""
        key = stage, tuple(given)
        if key in self._known:
            return self._known[key]
        known = sizes(stage, given, self.program.weights)
        numbers = _numbered([*stage.inputs, *(value for op in stage.ops for value in ops.writes(op))])
        first_op, first_value, first_host = len(self._ops), len(self._values), len(self._operands)
        self._values += [known[value] for value in numbers]
        self._operands += hosts
        for op in stage.ops:
            self._ops.append(self._record(op, numbers))
        first_output = len(self._operands)
        self._operands += [numbers[value] for value in stage.outputs]
        self._stages.append(
            np.array(
                (
                    first_op,
                    len(stage.ops),
                    first_value,
                    len(numbers),
                    len(stage.inputs),
                    first_host if hosts else 0,
                    first_output,
                    len(stage.outputs),
                ),
                STAGE,
            )
        )
        self._known[key] = len(self._stages) - 1
        return self._known[key]

    def _record(self, op: ops.Op, numbers: Mapping[str, int]) -> Array:
        fields = FIELDS[type(op)](op, self._numbers)
        reads, writes = ops.reads(op), ops.writes(op)
        at = getattr(op, "at", None)
        record = np.zeros((), OP)
        record["kind"] = OpKind[ops.kind(op).upper()]
        record["at"] = NONE if at is None else at
        record["first_operand"], record["reads"], record["writes"] = (
            len(self._operands),
            len(reads),
            len(writes),
        )
        record["weights"] = NONE
        for name, value in fields.items():
            if isinstance(value, list):
                record[name][: len(value)] = value
            else:
                record[name] = value
        self._operands += [numbers[value] for value in (*reads, *writes)]
        return record


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
