"""The layers as torch modules: attention and MLP with their norms, matrices and deltas; and what makes K and V alone.

Shapes and names are those of ``modules.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.spec import Segment, Spec
from ..runtime.weights import MATRICES, copies, projection_shapes
from . import fused
from .fused import Cache, LaneTensors, Numerics
from .modules import Depth, LoraPair, Matrix, Norm, Weights, apply_deltas
from .weights import SPLIT, split_rows


class Projections(nn.Module):
    """The base of a layer: norms, and matrices with their deltas."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.deltas: dict[str, list[tuple[nn.Module | None, int]]] = {}
        self.copies: dict[str, int] = {}

    def add_matrices(
        self,
        matrices: Mapping[str, tuple[str, ...]],
        segment: Segment,
        weights: Weights,
        prefix: str,
        numerics: Numerics,
    ) -> None:
        """Add ``matrices``, by name with the projections that each one concatenates, and their deltas."""
        sizes = {name: out for name, (out, _) in projection_shapes(self.spec).items()}
        for name, parts in matrices.items():
            stored = _split(weights, prefix, name, self.spec) if name in SPLIT else weights
            self.add_module(name, Matrix(stored, f"{prefix}{name}", numerics))
            self.copies[name] = copies(segment, name)
            holders = [self._lora(weights, prefix, part) if part in segment.lora else None for part in parts]
            if any(holders):
                self.deltas[name] = [(h, sizes[part]) for h, part in zip(holders, parts, strict=True)]

    def _lora(self, weights: Weights, prefix: str, part: str) -> nn.Module:
        pair = LoraPair(weights, f"{prefix}{part}")
        if not hasattr(self, part):
            self.add_module(part, pair)
            return pair
        # An unfused projection is already a matrix of that name: the stacks join it.
        matrix = self.get_submodule(part)
        for side, stack in pair.named_buffers():
            matrix.register_buffer(side, stack)
        return matrix

    def _norm(self, weights: Weights, name: str) -> Norm:
        return Norm(weights[f"{name}.weight"], self.spec.norm_eps)

    def project(self, name: str, x: Tensor, depth: Depth) -> Tensor:
        """x [B, S, in] → [B, S, out] through a fused projection and its delta."""
        y: Tensor = self.get_submodule(name)(x)
        if self.copies[name] > 1:
            y = depth.choose(y, self.copies[name])
        return y + apply_deltas(x, self.deltas[name], depth) if name in self.deltas else y

    def keys_values(self, x: Tensor, depth: Depth) -> tuple[Tensor, Tensor]:
        """x [B, S, D] → k and v [B, S, K·hd], k not yet turned to its position."""
        return fused.halves(self.project("kv_proj", x, depth))


def _split(weights: Weights, prefix: str, part: str, spec: Spec) -> Weights:
    """Views of the rows of the stored qkv_proj that are ``part``, under its name."""
    rows = slice(*split_rows(spec)[part])
    sides = [side for side in ("weight", "codes", "scales") if f"{prefix}qkv_proj.{side}" in weights]
    return {f"{prefix}{part}.{side}": weights[f"{prefix}qkv_proj.{side}"][rows] for side in sides}


class KeysValues(Projections):
    """What of a layer makes its K and V."""

    def __init__(
        self, spec: Spec, segment: Segment, weights: Weights, prefix: str, numerics: Numerics
    ) -> None:
        super().__init__(spec)
        self.attention_norm = self._norm(weights, f"{prefix}attention_norm")
        self.add_matrices({"kv_proj": SPLIT["kv_proj"]}, segment, weights, prefix, numerics)

    def forward(self, x: Tensor, depth: Depth, lanes: LaneTensors) -> Cache:
        """x [B, S, D] → k and v [B, S, K·hd] as the caches hold them."""
        k, v = self.keys_values(self.attention_norm(x, depth), depth)
        return fused.rotate(k, lanes), v


class Layer(Projections):
    """One physical layer: attention and SwiGLU MLP with their norms, deltas and residuals.

    ``split``: queries are projected apart from keys and values, because there may be none of those.
    """

    def __init__(
        self,
        spec: Spec,
        segment: Segment,
        weights: Weights,
        prefix: str,
        numerics: Numerics,
        split: bool = False,
    ) -> None:
        super().__init__(spec)
        self.attention_norm = self._norm(weights, f"{prefix}attention_norm")
        self.mlp_norm = self._norm(weights, f"{prefix}mlp_norm")
        if spec.sandwich_norms:
            self.attention_out_norm = self._norm(weights, f"{prefix}attention_out_norm")
            self.mlp_out_norm = self._norm(weights, f"{prefix}mlp_out_norm")
        others = {name: parts for name, parts in MATRICES.items() if name != "qkv_proj"}
        self.add_matrices(SPLIT | others if split else MATRICES, segment, weights, prefix, numerics)

    def queries_keys_values(self, x: Tensor, depth: Depth, lanes: LaneTensors) -> list[Tensor]:
        """x [B, S, D] → what ``fused.attention`` takes: all in one, or apart."""
        if lanes.fresh is None:
            return [self.project("qkv_proj", x, depth)]
        return [
            self.project("q_proj", x, depth),
            *self.keys_values(fused.first_tokens(x, lanes.fresh), depth),
        ]

    def forward(
        self, x: Tensor, residual: Tensor | None, depth: Depth, lanes: LaneTensors, cache: Cache
    ) -> tuple[Tensor, Tensor, Cache]:
        """(x, residual) → (x, residual, cache): the layer's output is x + residual, added by the next norm."""
        if residual is None:
            h, total = self.attention_norm(x, depth), x
        else:
            h, total = self.attention_norm.add(x, residual, depth)
        qkv = self.queries_keys_values(h, depth, lanes)
        attended, cache = fused.attention(qkv, cache, lanes, self.spec)
        a = self.project("o_proj", attended, depth)
        if self.spec.sandwich_norms:
            a = self.attention_out_norm(a, depth)
        h, total = self.mlp_norm.add(a, total, depth)
        gate, up = fused.halves(self.project("gate_up_proj", h, depth))
        m = self.project("down_proj", F.silu(gate) * up, depth)
        if self.spec.sandwich_norms:
            m = self.mlp_out_norm(m, depth)
        return m, total, cache
