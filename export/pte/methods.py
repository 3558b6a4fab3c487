"""The methods of a program: static numbers of rows, caches of any size, flat tensors in a fixed order.

    prologue_m1, prologue_prefill     the layers before the loop; only where there are some
    block_m1 … block_mR, block_prefill
    read_m1 … read_mR, read_prefill   depths after the first where depths share K and V
    fill_m1, fill_prefill             only K and V, for depths that a token skips
    coda_m1 … coda_mR, coda_prefill   the layers after the loop; only where there are some
    head_m1 … head_mR, head_prefill   norm and head

mN takes N rows, each with caches of its own; ``prefill`` CHUNK rows of one lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.backend import can_fill
from ...runtime.llama_like import spec_of
from ...runtime.model.program import Program
from ...runtime.pte.binding import STAGES, depth_matters
from ...runtime.pte.layout import Shapes
from ...runtime.spec import Spec
from .layer import Call, KeysValues, Layer, Pair
from .matrix import Matrix, Norm, Weights

Inputs = tuple[Tensor, ...]


class Layers(nn.Module):
    """The layers of one stage, each stored once however often it is applied."""

    def __init__(self, program: Program, spec: Spec, stage: str, weights: Weights, bits: int) -> None:
        super().__init__()
        stages = spec.stages
        numbers = {"prologue": stages.prologue, "block": stages.block, "epilogue": stages.epilogue}[stage]
        self.looped = stage == "block" and stages.depths > 1
        self.order: list[tuple[str, int]] = []
        self.layers = nn.ModuleDict()
        kind = KeysValues if stage == "block" and can_fill(program) else Layer
        for s in numbers:
            segment = spec.segments[s]
            for j in range(segment.layers):
                self.layers[f"{s}_{j}"] = kind(
                    spec,
                    segment,
                    weights,
                    f"segments.{s}.layers.{j}.",
                    bits,
                    stage == "block" and spec.shares_kv,
                )
            for repeat in range(1 if self.looped else segment.repeats):
                self.order += [(f"{s}_{j}", repeat) for j in range(segment.layers)]

    def applied(self, call: Call) -> Iterator[tuple[nn.Module, Call]]:
        """Layers in order of application, each with the call as it sees it."""
        for name, repeat in self.order:
            own = call.depth if self.looped else repeat
            yield self.layers[name], replace(call, depth=own)


class Rows(nn.Module):
    """state [M, D], …, caches → state [M, D] and, unless it only reads, new k and v [M, K, hd] of each layer.

    Inputs in order: state; depth [M, R] one-hot where it matters; cos, sin [M, 1, hd]; ``mask`` of each row; then for
    each layer and row a key and a value cache [K, C, hd].
    """

    def __init__(
        self,
        program: Program,
        spec: Spec,
        kind: str,
        rows: int,
        chunk: bool,
        layers: Layers,
        norm: Norm | None,
    ) -> None:
        super().__init__()
        self.kind, self.rows, self.chunk, self.layers, self.norm = kind, rows, chunk, layers, norm
        self.lanes = 1 if chunk else rows
        self.reads = kind == "read"
        self.has_depth = layers.looped and depth_matters(program)
        self.spec = spec
        self.register_buffer("copies", torch.zeros(1, spec.heads // spec.kv_heads, 1, 1))
        segment = spec.segments[spec.stages.block[0]]
        self.ranks = set(segment.lora.values()) if self.has_depth else set()
        for rank in self.ranks:
            self.register_buffer(f"rank{rank}", torch.eye(spec.depths).repeat_interleave(rank, 0))

    def example(self) -> tuple[Inputs, list[dict[int, object] | None]]:
        """Valid inputs, and which of their dimensions is C."""
        spec, m = self.spec, self.rows
        # XNNPACK reserves memory for the largest C when a method is loaded: no more than there can be.
        capacity = torch.export.Dim("C", min=2, max=max(spec.context_length, 41))
        c = 40  # unlike any other size
        given: list[tuple[int, tuple[int, ...], dict[int, object] | None]] = [
            (1, (m, spec.hidden_size), None)
        ]
        given += [(1, (m, spec.depths), None)] if self.has_depth else []
        given += [(2, (m, 1, spec.head_dim), None)]
        if self.kind != "fill":
            new = 0 if self.reads else m
            seen = capacity + new if new else capacity
            given += [(self.lanes, (1, m if self.chunk else 1, c + new), {2: seen})]
            count = 2 * self.lanes * len(self.layers.order)
            given += [(count, (spec.kv_heads, c, spec.head_dim), {1: capacity})]
        # Each a tensor of its own: two inputs that are one tensor would be traced as one.
        inputs = tuple(torch.zeros(shape) for count, shape, _ in given for _ in range(count))
        return inputs, [free for count, _, free in given for _ in range(count)]

    def forward(self, state: Tensor, *inputs: Tensor) -> Inputs:
        rest = list(inputs)
        depth = rest.pop(0) if self.has_depth else None
        cos, sin = rest.pop(0), rest.pop(0)
        columns = (
            {rank: F.linear(depth, self.get_buffer(f"rank{rank}")) for rank in self.ranks}
            if depth is not None
            else {}
        )
        if self.kind == "fill":
            call, new = Call(depth, cos, sin, (), self.chunk, columns=columns), list[Tensor]()
            for layer, seen in self.layers.applied(call):
                assert isinstance(layer, KeysValues)
                new += layer.keys_values(state, seen)
            return tuple(new)
        mask, caches = tuple(rest[: self.lanes]), rest[self.lanes :]
        shared = self.spec.heads // self.spec.kv_heads
        if self.chunk and shared > 1:  # the query heads of a KV head are rows of one matrix
            copies = mask[0].view(1, 1, self.rows, -1) + self.get_buffer("copies")
            mask = (copies.view(1, shared * self.rows, -1),)
        call = Call(depth, cos, sin, mask, self.chunk, self.reads, columns)
        x, new = state, []
        for i, (layer, seen) in enumerate(self.layers.applied(call)):
            own = caches[2 * self.lanes * i : 2 * self.lanes * (i + 1)]
            pairs: list[Pair] = list(zip(own[::2], own[1::2], strict=True))
            x, made = layer(x, seen, pairs)
            new += made
        return (x if self.norm is None else self.norm(x, None), *new)


class Head(nn.Module):
    """state [N, D] → logits [N, V]."""

    def __init__(self, rows: int, width: int, norm: Norm | None, matrix: Matrix) -> None:
        super().__init__()
        self.rows, self.width, self.norm, self.matrix = rows, width, norm, matrix

    def example(self) -> tuple[Inputs, list[dict[int, object] | None]]:
        """Valid inputs; no dimension is free."""
        return (torch.zeros(self.rows, self.width),), [None]

    def forward(self, state: Tensor) -> Inputs:
        return (self.matrix(state if self.norm is None else self.norm(state, None)),)


@dataclass(frozen=True)
class Methods:
    """Methods by name, over modules that they share."""

    methods: dict[str, Rows | Head]


def build_methods(program: Program, weights: Weights, bits: int, shapes: Shapes) -> Methods:
    """Every method of ``program`` over stored ``weights``."""
    spec = spec_of(program, "target executorch")
    final = Norm(weights["norm.weight"], spec.norm_eps)
    made: dict[str, Layers] = {}
    methods: dict[str, Rows | Head] = {}
    for kind in shapes.kinds(program):
        stage = STAGES.get(kind)
        for name, rows, chunk in shapes.methods(kind):
            if stage is None:
                continue
            if stage not in made:
                made[stage] = Layers(program, spec, stage, weights, bits)
            norm = final if spec.loop_norm and kind in ("block", "read") else None
            methods[name] = Rows(program, spec, kind, rows, chunk, made[stage], norm)
    matrix = Matrix(weights, "embed" if spec.tied_embedding else "head", bits)
    for name, rows, _ in shapes.methods("head"):
        methods[name] = Head(rows, spec.hidden_size, None if spec.loop_norm else final, matrix)
    return Methods(methods)
