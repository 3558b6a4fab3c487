"""A program as torch modules, in operators that XNNPACK takes into one delegate: a module or function for each op.

The modules are traced and lowered method by method (``export/targets/executorch/``): a stage of the program for the
depth loop on the host, or the whole program with the loop written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...runtime.errors import ExportError
from ...runtime.model import ops
from ...runtime.model.program import Program, Stage
from ...runtime.model.sizes import sizes
from . import xnnpack_attend, xnnpack_ops
from .xnnpack_attend import JointRotate, together
from .xnnpack_call import Call
from .xnnpack_ops import LoweringScope, plain
from .xnnpack_weights import Delta, WeightModules

Lowering = Callable[[Any, LoweringScope], nn.Module]
LOWERINGS: Mapping[type, Lowering] = {
    ops.Norm: xnnpack_ops.Norm,
    ops.Linear: xnnpack_ops.Linear,
    ops.Attend: xnnpack_attend.Attend,
    ops.AttendLearned: xnnpack_attend.AttendLearned,
    ops.Act: plain(xnnpack_ops.act),
    ops.Add: plain(xnnpack_ops.add),
    ops.Mul: plain(xnnpack_ops.mul),
    ops.Scale: xnnpack_ops.Scale,
    ops.Softcap: plain(xnnpack_ops.softcap),
    ops.Concat: plain(xnnpack_ops.concat),
    ops.Slice: xnnpack_ops.Slice,
    JointRotate: xnnpack_attend.Rotate,
}
REFUSED: Mapping[type, str] = {
    ops.AttendTwice: "it reads two slots of a lane, and a method gets one",
    ops.Shift: "it keeps a row of each lane from call to call, and methods keep K/V only",
    ops.Experts: "it chooses matrices by the token, and XNNPACK takes none that are chosen",
}
"""Ops that no method computes, and why."""


class Steps(nn.Module):
    """The ops of a stage, one after the other: its inputs → its outputs."""

    def __init__(
        self,
        stage: Stage,
        given: Sequence[int],
        held: WeightModules,
        lowerings: Mapping[type, Lowering] = LOWERINGS,
    ) -> None:
        """``given``: the sizes of the inputs."""
        super().__init__()
        known = sizes(stage, given, held.program.weights)
        self.found = together(stage.ops, known) if JointRotate in lowerings else list(stage.ops)
        self.inputs, self.outputs, scope = stage.inputs, stage.outputs, LoweringScope(held, known)
        self.steps = nn.ModuleList(lowerings[type(op)](op, scope) for op in self.found)

    @property
    def ranks(self) -> set[int]:
        """Return the ranks of deltas whose depth is that of the row."""
        return {module.rank for module in self.modules() if isinstance(module, Delta) and module.by_row}

    def forward(self, call: Call, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the stage."""
        values: dict[str, Tensor] = dict(zip(self.inputs, given, strict=True))
        for op, step in zip(self.found, self.steps, strict=True):
            found = step(call, *(values[name] for name in _reads(op)))
            written = op.y if isinstance(op, JointRotate) else ops.writes(op)
            values.update(zip(written, found if len(written) > 1 else (found,), strict=True))
        return tuple(values[name] for name in self.outputs)


def _reads(op: ops.Op | JointRotate) -> tuple[str, ...]:
    return op.x if isinstance(op, JointRotate) else ops.reads(op)


def check(program: Program) -> None:
    """Raise ExportError, which names the first op that no method computes."""
    for stage in program.stages:
        for op in stage.ops:
            if type(op) in REFUSED:
                raise ExportError(f"target executorch does not take {ops.kind(op)}: {REFUSED[type(op)]}")
            if isinstance(op, ops.Embed) and stage is not program.prologue:
                raise ExportError(
                    "target executorch takes embed before the loop only: the host looks rows up, once for each token"
                )
    shapes = [
        (c.kv_heads, c.head_dim) for name in ("prologue", "block", "epilogue") for c in program.caches(name)
    ]
    if len(set(shapes)) > 1:
        one, other = list(dict.fromkeys(shapes))[:2]
        raise ExportError(
            "target executorch takes attend with caches of one shape, and the model has "
            f"{one[0]} heads of {one[1]} and {other[0]} of {other[1]}"
        )
