"""The methods of a program: static numbers of rows, caches of any size, flat tensors in a fixed order.

    prologue_m1, prologue_prefill     what comes before the loop; only where that is more than rows of a table
    block_m1 … block_mR, block_prefill
    read_m1 … read_mR, read_prefill   depths after the first where depths share K/V
    fill_m1, fill_prefill             only K/V, for depths that a token skips
    epilogue_m1 … epilogue_mR, epilogue_prefill   the layers after the loop; only where there are some
    head_m1 … head_mR, head_prefill   norm and head

mN takes N rows, each with caches of its own; ``prefill`` CHUNK rows of one lane. Further blocks of a loop have methods
of their own, ``block1_m1`` and so on: see ``runtime/engines/executorch/kinds.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....runtime.engines.executorch.kinds import Mask, role, signature_of, stage_of, widths
from ....runtime.engines.executorch.layout import Shapes
from ....runtime.model.ops import Attend
from ....runtime.model.program import Program
from ...lower.xnnpack import Steps
from ...lower.xnnpack_call import Call
from ...lower.xnnpack_ops import side_by_side
from ...lower.xnnpack_weights import WeightModules

Inputs = tuple[Tensor, ...]
Methods = dict[str, "RowsMethod"]


class RowsMethod(nn.Module):
    """A stage on ``rows`` rows, each of a lane of its own, or all of one lane if ``chunk``.

    Inputs and outputs are those of ``MethodSignature`` (``runtime/engines/executorch/kinds.py``), in order: the new
    k and v [M, K, d] of each cache are outputs behind the state.
    """

    def __init__(self, program: Program, kind: str, rows: int, chunk: bool, steps: Steps) -> None:
        super().__init__()
        self.kind, self.rows, self.chunk, self.steps = kind, rows, chunk, steps
        self.lanes = 1 if chunk else rows
        self.widths, self.signature = widths(program, kind), signature_of(program, kind)
        self.context = program.context_length
        self.ranks = steps.ranks
        for rank in self.ranks:
            self.register_buffer(f"rank{rank}", torch.eye(program.depths).repeat_interleave(rank, 0))
        attends = [op for op in stage_of(program, kind).ops if isinstance(op, Attend)]
        self.groups = {op.heads // op.kv_heads for op in attends}
        for group in self.groups - {1} if chunk else ():
            self.register_buffer(f"copies{group}", torch.zeros(1, group, 1, 1))

    def example(self) -> tuple[Inputs, list[dict[int, object] | None]]:
        """Return valid inputs, and which of their dimensions is C."""
        takes, m = self.signature, self.rows
        # XNNPACK reserves memory for the largest C when a method is loaded: no more than there can be.
        capacity = torch.export.Dim("C", min=2, max=max(self.context, 41))
        c = 40  # unlike any other size
        wanted: list[tuple[int, tuple[int, ...], dict[int, object] | None]] = [(1, (m, takes.width), None)]
        wanted += [(1, (m, takes.depths), None)] if takes.depths else []
        wanted += [(2, (m, 1, rotary_input.by.dims), None) for rotary_input in takes.rotary_inputs]
        for mask in takes.masks:
            new, height = m if mask.fresh else 0, m if self.chunk else 1
            size = (c if mask.cached else 0) + new
            seen = (capacity + new if new else capacity) if mask.cached else None
            wanted += [(self.lanes, (1, height, size), None if seen is None else {2: seen})]
        for cache in takes.caches:
            wanted += [(2 * self.lanes, (cache.kv_heads, c, cache.head_dim), {1: capacity})]
        # Each a tensor of its own: two inputs that are one tensor would be traced as one.
        inputs = tuple(torch.zeros(shape) for count, shape, _ in wanted for _ in range(count))
        return inputs, [free for count, _, free in wanted for _ in range(count)]

    def forward(self, state: Tensor, *inputs: Tensor) -> Inputs:
        """Return the outputs of the method."""
        takes, rest = self.signature, list(inputs)
        depth = rest.pop(0) if takes.depths else None
        columns = {}
        if depth is not None:
            columns = {rank: F.linear(depth, self.get_buffer(f"rank{rank}")) for rank in self.ranks}
        cos_sin = {rotary_input: (rest.pop(0), rest.pop(0)) for rotary_input in takes.rotary_inputs}
        masks = {mask: tuple(rest.pop(0) for _ in range(self.lanes)) for mask in takes.masks}
        caches = [[(rest.pop(0), rest.pop(0)) for _ in range(self.lanes)] for _ in takes.caches]
        call = Call(depth, columns, cos_sin, self._by_group(masks), caches, self.chunk)
        parts = [state]
        if len(self.widths) > 1:
            starts = [sum(self.widths[:i]) for i in range(len(self.widths))]
            parts = [state[:, at : at + size] for at, size in zip(starts, self.widths, strict=True)]
        found = self.steps(call, *parts)
        if role(self.kind) == "fill":
            heads = [cache.kv_heads for cache in takes.fresh for _ in range(2)]
            return tuple(y.view(self.rows, h, -1) for y, h in zip(found, heads, strict=True))
        new = [y for number in sorted(call.new) for y in call.new[number]]
        return (side_by_side(found) if len(found) > 1 else found[0], *new)

    def _by_group(self, masks: Mapping[Mask, Inputs]) -> dict[tuple[Mask, int], Inputs]:
        """Return ``masks``, of a chunk repeated for the query heads of a KV head, which are rows of one matrix."""
        found = {}
        for mask, seen in masks.items():
            for group in self.groups:
                found[mask, group] = seen
                if self.chunk and group > 1:
                    copies = seen[0].view(1, 1, self.rows, -1) + self.get_buffer(f"copies{group}")
                    found[mask, group] = (copies.view(1, group * self.rows, -1),)
        return found


def build_methods(program: Program, weights: Mapping[str, Tensor], shapes: Shapes) -> Methods:
    """Return every method of ``program`` over stored ``weights``."""
    kinds = shapes.kinds(program)
    # Not those that only fill in: they are few, and would have the largest matrices of all layers in pieces.
    apart = [stage_of(program, kind) for kind in kinds if role(kind) != "fill"]
    held = WeightModules(program, weights, apart=apart)
    methods: Methods = {}
    for kind in kinds:
        steps = Steps(stage_of(program, kind), widths(program, kind), held)
        for name, rows, chunk in shapes.methods(kind):
            methods[name] = RowsMethod(program, kind, rows, chunk, steps)
    return methods
