"""Prologue, block and epilogue: the three modules that become the graphs of the staged layout; and a fourth, fill.

They take and return flat tensors (what a graph has), in the order of ``input_names`` and ``output_names``.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from ..runtime.backend import can_fill
from ..runtime.model.program import Program
from ..runtime.spec import Segment, Spec, stage_layers
from .fused import Cache, LaneTensors, Numerics
from .layers import KeysValues, Layer
from .modules import Depth, Matrix, Norm, Table, Weights

LANE_INPUTS = ("positions", "last", "longest", "tokens", "cos", "sin")
SHARED_LANE_INPUTS = ("positions", "last", "longest", "fresh", "cos", "sin")
LANE_COUNT = len(LANE_INPUTS)


class SegmentLayers(nn.Module):
    """The physical layers of one segment."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Stage(nn.Module):
    """A run of segments with their caches; the base of the stages."""

    name: str

    def __init__(self, spec: Spec, weights: Weights, numerics: Numerics) -> None:
        super().__init__()
        self.spec = spec
        numbers = {
            "prologue": spec.stages.prologue,
            "block": spec.stages.block,
            "fill": spec.stages.block,
            "epilogue": spec.stages.epilogue,
        }[self.name]
        self.shared = self.name == "block" and spec.shares_kv
        self.segments = nn.ModuleDict()
        for s in numbers:
            segment = spec.segments[s]
            self.segments[str(s)] = SegmentLayers(
                [
                    self.layer(segment, weights, f"segments.{s}.layers.{j}.", numerics)
                    for j in range(segment.layers)
                ]
            )
        self.cache_count = 0 if self.name == "fill" else stage_layers(spec, self.name)
        self.build(weights, numerics)

    def layer(self, segment: Segment, weights: Weights, prefix: str, numerics: Numerics) -> nn.Module:
        """A layer of ``segment``."""
        return Layer(self.spec, segment, weights, prefix, numerics, split=self.shared)

    def build(self, weights: Weights, numerics: Numerics) -> None:
        """Add what a stage has beside its layers."""

    @property
    @abstractmethod
    def input_names(self) -> list[str]:
        """Names of ``forward``'s tensors, in order."""

    @property
    @abstractmethod
    def output_names(self) -> list[str]:
        """Names of the tensors that ``forward`` returns, in order."""

    @property
    def looped(self) -> bool:
        """Is the depth an input of this stage?"""
        return self.name == "block" and self.spec.depths > 1

    @property
    def cache_names(self) -> list[str]:
        return [f"{i}.{side}" for i in range(self.cache_count) for side in ("key", "value")]

    def run(
        self, x: Tensor, depth: Tensor | None, lanes: LaneTensors, caches: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """x [B, S, D] through every layer of the stage → x and the caches, in order of application."""
        out: list[Cache] = []
        residual: Tensor | None = None
        for key, holder in self.segments.items():
            assert isinstance(holder, SegmentLayers)
            segment = self.spec.segments[int(key)]
            if self.looped:
                selectors = [Depth(0 if depth is None else depth)]
            else:
                selectors = [Depth(r) for r in range(segment.repeats)]
            for selector in selectors:
                for layer in holder.layers:
                    x, residual, cache = layer(x, residual, selector, lanes, caches[len(out)])
                    out.append(cache)
        return (x if residual is None else x + residual), out

    def lanes(self, tensors: tuple[Tensor, ...]) -> LaneTensors:
        positions, last, longest, count, cos, sin = tensors
        tokens, fresh = (None, count) if self.shared else (count, None)
        return LaneTensors(positions, last, longest, tokens, cos, sin, fresh)


def pairs(tensors: tuple[Tensor, ...]) -> list[Cache]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def flat(caches: list[Cache]) -> list[Tensor]:
    return [tensor for cache in caches for tensor in cache]


class Prologue(Stage):
    """ids [B, S] → state [B, S, D]."""

    name = "prologue"

    def build(self, weights: Weights, numerics: Numerics) -> None:
        self.embed = Table(weights, "embed", numerics, self.spec.hidden_size)

    @property
    def input_names(self) -> list[str]:
        lanes = LANE_INPUTS if self.cache_count else ()
        return ["ids", *lanes, *(f"past.{n}" for n in self.cache_names)]

    @property
    def output_names(self) -> list[str]:
        return ["state", *(f"present.{n}" for n in self.cache_names)]

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(ids)
        if not self.cache_count:
            return (x,)
        x, caches = self.run(x, None, self.lanes(rest[:LANE_COUNT]), pairs(rest[LANE_COUNT:]))
        return (x, *flat(caches))


class Block(Stage):
    """state [B, S, D], depth [B] → state [B, S, D]: one pass."""

    name = "block"

    def build(self, weights: Weights, numerics: Numerics) -> None:
        if self.spec.loop_norm:
            self.norm = Norm(weights["norm.weight"], self.spec.norm_eps)

    @property
    def depth_matters(self) -> bool:
        """Does anything differ between depths?"""
        segment = self.spec.segments[self.spec.stages.block[0]]
        own = segment.per_repeat_norms or segment.per_repeat_attention
        return self.looped and (own or bool(segment.lora))

    @property
    def input_names(self) -> list[str]:
        depth = ["depth"] if self.depth_matters else []
        lanes = SHARED_LANE_INPUTS if self.shared else LANE_INPUTS
        return ["state", *depth, *lanes, *(f"past.{n}" for n in self.cache_names)]

    @property
    def output_names(self) -> list[str]:
        return ["next", *(f"present.{n}" for n in self.cache_names)]

    def forward(self, state: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        depth: Tensor | None = None
        if self.depth_matters:
            depth, *others = rest
            rest = tuple(others)
        x, caches = self.run(state, depth, self.lanes(rest[:LANE_COUNT]), pairs(rest[LANE_COUNT:]))
        if self.spec.loop_norm:
            x = self.norm(x, Depth(0))
        return (x, *flat(caches))


class Epilogue(Stage):
    """state [B, S, D], rows [N] of the flattened B·S → logits [N, V]."""

    name = "epilogue"

    def build(self, weights: Weights, numerics: Numerics) -> None:
        if not self.spec.loop_norm:
            self.norm = Norm(weights["norm.weight"], self.spec.norm_eps)
        if self.spec.tied_embedding:
            self.embed = Matrix(weights, "embed", numerics)
        else:
            self.head = Matrix(weights, "head", numerics)

    @property
    def input_names(self) -> list[str]:
        lanes = LANE_INPUTS if self.cache_count else ()
        return ["state", "rows", *lanes, *(f"past.{n}" for n in self.cache_names)]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *(f"present.{n}" for n in self.cache_names)]

    def forward(self, state: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows, *rest = inputs
        x, caches = state, list[Cache]()
        if self.cache_count:
            x, caches = self.run(
                x, None, self.lanes(tuple(rest[:LANE_COUNT])), pairs(tuple(rest[LANE_COUNT:]))
            )
        x = x.reshape(-1, self.spec.hidden_size).index_select(0, rows)
        if not self.spec.loop_norm:
            x = self.norm(x, Depth(0))
        logits = (self.embed if self.spec.tied_embedding else self.head)(x)
        return (logits, *flat(caches))


class Fill(Stage):
    """state [B, S, D], depth [B] → K and V [B, S, K·hd] of each layer of the block, as if it were its input."""

    name = "fill"

    def layer(self, segment: Segment, weights: Weights, prefix: str, numerics: Numerics) -> nn.Module:
        return KeysValues(self.spec, segment, weights, prefix, numerics)

    @property
    def depth_matters(self) -> bool:
        """Does anything differ between depths?"""
        segment = self.spec.segments[self.spec.stages.block[0]]
        return segment.per_repeat_norms or not {"k_proj", "v_proj"}.isdisjoint(segment.lora)

    @property
    def input_names(self) -> list[str]:
        return ["state", *(["depth"] if self.depth_matters else []), "positions", "cos", "sin"]

    @property
    def output_names(self) -> list[str]:
        return [f"{side}.{i}" for i in range(stage_layers(self.spec, "block")) for side in ("key", "value")]

    def forward(self, state: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        depth = Depth(rest[0] if self.depth_matters else 0)
        positions, cos, sin = rest[-3:]
        # Of the lanes, only the positions are needed.
        lanes = LaneTensors(positions, positions, positions, None, cos, sin)
        (holder,) = self.segments.values()
        assert isinstance(holder, SegmentLayers)
        return tuple(flat([layer(state, depth, lanes) for layer in holder.layers]))


AnyStage = Prologue | Block | Fill | Epilogue


def stages_of(program: Program) -> tuple[type[AnyStage], ...]:
    """The stages of a model, in the order of a pass."""
    return (Prologue, Block, Fill, Epilogue) if can_fill(program) else (Prologue, Block, Epilogue)
