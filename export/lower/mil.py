"""MIL from a program: one function for each op, by coremltools' builder, and its numbers as float16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from msgspec import structs

from ...runtime.errors import ExportError
from ...runtime.model import ops
from ...runtime.model.program import Program, Stage
from ..targets.coreml.constants import Var
from . import mil_attention, mil_elementwise, mil_matrices
from .mil_scope import Scope, Values

LOWERINGS: Mapping[type, Callable[[Scope, Values, Any], None]] = {
    ops.Embed: mil_matrices.embed,
    ops.Norm: mil_elementwise.norm,
    ops.Linear: mil_matrices.linear,
    ops.Rotate: mil_attention.rotate,
    ops.Attend: mil_attention.attend,
    ops.AttendLearned: mil_attention.attend_learned,
    ops.Act: mil_elementwise.act,
    ops.Add: mil_elementwise.add,
    ops.Mul: mil_elementwise.mul,
    ops.Scale: mil_elementwise.scale,
    ops.Softcap: mil_elementwise.softcap,
    ops.Concat: mil_elementwise.concat,
    ops.Slice: mil_elementwise.cut,
}
REFUSED: Mapping[type, str] = {
    ops.AttendTwice: "it reads two slots of a token, and a function has the rows of one",
    ops.Shift: "it keeps a row of each lane from call to call, and states hold K/V only",
    ops.Experts: "which of them a token needs is known when it runs, and a function has fixed weights",
}
"""Ops that no function computes, and why."""


def check(program: Program) -> None:
    """Raise ExportError, which names the first op that no function of a package computes."""
    for stage in program.stages:
        for op in stage.ops:
            if (reason := _problem(op, program.encoder)) is not None:
                raise ExportError(
                    f"target coreml does not take {ops.kind(op)}{reason}; export to another target"
                )


def _problem(op: ops.Op, encoder: bool) -> str | None:
    if type(op) in REFUSED:
        return f": {REFUSED[type(op)]}"
    if isinstance(op, ops.Attend) and op.cache is None and not encoder:
        return " without a cache beside one with it: a text goes in at once, or token by token"
    if isinstance(op, ops.Attend) and op.cache is not None and op.mask == "prefix":
        return " with mask prefix: a prompt goes in by chunks, and its first block may be longer than one"
    return None


def run(scope: Scope, name: str, stage: Stage, depth: int, given: Iterable[Var]) -> list[Var]:
    """Write ``stage``, which is that of ``name`` at ``depth``, and return its outputs [1, T, size] each."""
    values = _run(scope, name, stage, depth, given)
    return [values.flat(output) for output in stage.outputs]


def fill(scope: Scope, name: str, stage: Stage, depth: int, given: Iterable[Var]) -> None:
    """Write a ``stage`` whose outputs are K and V of each of its caches, and the writes of those that it has not
    written."""
    values = _run(scope, name, stage, depth, given)
    for cache, (k, v) in enumerate(zip(stage.outputs[::2], stage.outputs[1::2], strict=True)):
        if cache not in scope.written:
            mil_attention.keep(scope, values, cache, k, v)


def _run(scope: Scope, name: str, stage: Stage, depth: int, given: Iterable[Var]) -> Values:
    scope.enter(name, depth)
    values = Values(scope.count)
    for value, made in zip(stage.inputs, given, strict=True):
        values[value] = made
    for op in stage.ops:
        LOWERINGS[type(op)](scope, values, op)
    return values


def halved(program: Program) -> Program:
    """Return ``program`` with its numbers as float16 functions have them, except eps, which is a bound."""
    loop = structs.replace(program.loop, blocks=tuple(map(_halved, program.loop.blocks)))
    stages = {name: _halved(getattr(program, name)) for name in ("prologue", "epilogue", "head")}
    return structs.replace(program, loop=loop, **stages)


def _halved(stage: Stage) -> Stage:
    return structs.replace(stage, ops=tuple(_half(op) for op in stage.ops))


def _half(op: ops.Op) -> ops.Op:
    found = {
        name: float(np.float16(value))
        for name in ("scale", "factor", "offset", "cap")
        if isinstance(value := getattr(op, name, None), float)
    }
    if isinstance(op, ops.AttendLearned) or (isinstance(op, ops.Attend) and op.cap is None):
        found["scale"] = float(mil_attention.sharpness(op)) * op.head_dim**-0.5
    return structs.replace(op, **found)
