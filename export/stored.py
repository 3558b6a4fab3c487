"""From canonical tensors to stored ones: what is fused, in which order, and how it is quantized.

q, k and v become one matrix, gate and up another (one engine call each, and codes do not change by
stacking rows). Everything else keeps its canonical name. ``write_weights`` streams them into one
safetensors file, one tensor in memory at a time; every target takes its numbers from that file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..quant.pack import quantize
from ..quant.recipe import Recipe
from ..runtime.spec import PROJECTIONS, Spec
from .family import Reading
from .weights import WeightsWriter

log = logging.getLogger(__name__)

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
NORMS = ("attention_norm", "mlp_norm")
SANDWICH_NORMS = ("attention_out_norm", "mlp_out_norm")


@dataclass(frozen=True)
class Stored:
    """A stored tensor ``name`` (without .weight/.codes/.scales for matrices) and what it is stacked from."""

    name: str
    parts: tuple[str, ...]


def layer_tensors(spec: Spec, segment: int, layer: int) -> Iterator[Stored]:
    """The stored tensors of one physical layer."""
    prefix = f"segments.{segment}.layers.{layer}."
    for norm in NORMS + (SANDWICH_NORMS if spec.sandwich_norms else ()):
        yield Stored(f"{prefix}{norm}.weight", (f"{prefix}{norm}.weight",))
    for fused, parts in FUSED.items():
        yield Stored(f"{prefix}{fused}.weight", tuple(f"{prefix}{p}.weight" for p in parts))
        for part in parts:
            if part in spec.segments[segment].lora:
                for side in ("lora_a", "lora_b"):
                    yield Stored(f"{prefix}{part}.{side}", (f"{prefix}{part}.{side}",))


def stored_tensors(spec: Spec) -> list[Stored]:
    """Every stored tensor of a model, embedding first."""
    tensors = [Stored("embed.weight", ("embed.weight",)), Stored("norm.weight", ("norm.weight",))]
    if not spec.tied_embedding:
        tensors.append(Stored("head.weight", ("head.weight",)))
    for s, segment in enumerate(spec.segments):
        for j in range(segment.layers):
            tensors.extend(layer_tensors(spec, s, j))
    return tensors


def canonical_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of every tensor of a model with this spec, as ``Spec`` documents them."""
    d, f = spec.hidden_size, spec.intermediate_size
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrices = dict(zip(PROJECTIONS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, d), "norm.weight": (d,)}
    if not spec.tied_embedding:
        shapes["head.weight"] = (spec.vocab_size, d)
    for s, segment in enumerate(spec.segments):
        for j in range(segment.layers):
            prefix = f"segments.{s}.layers.{j}."
            for norm in NORMS + (SANDWICH_NORMS if spec.sandwich_norms else ()):
                shapes[f"{prefix}{norm}.weight"] = (segment.repeats, d) if segment.per_repeat_norms else (d,)
            for name, (rows, columns) in matrices.items():
                shapes[f"{prefix}{name}.weight"] = (rows, columns)
                if name in segment.lora:
                    rank = segment.lora[name]
                    shapes[f"{prefix}{name}.lora_a"] = (segment.repeats, rank, columns)
                    shapes[f"{prefix}{name}.lora_b"] = (segment.repeats, rows, rank)
    return shapes


def rotary_tables(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [context, head_dim/2] float32, computed in float64."""
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    angle = np.outer(np.arange(spec.context_length, dtype=np.float64), spec.rope_theta**-exponent)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def write_weights(reading: Reading, recipe: Recipe, path: Path) -> None:
    """Quantize and write all stored tensors of ``reading`` to ``path``.

    ExportError when a matrix does not divide into groups; CheckpointError from the loaders (NaN, missing).
    """
    spec = reading.spec
    # float32 first, then float16, then bytes: without gaps, which the format forbids, each stays aligned.
    stored = sorted(stored_tensors(spec), key=lambda t: recipe.storage(t.parts[0]).bits, reverse=True)
    with WeightsWriter(path, 2 + 2 * len(stored)) as writer:
        for name, table in zip(("rope.cos", "rope.sin"), rotary_tables(spec), strict=True):
            writer.add(name, table)
        codes: list[tuple[str, np.ndarray]] = []
        for tensor in stored:
            storage = recipe.storage(tensor.parts[0])
            loaded = [reading.tensors[part]() for part in tensor.parts]
            value = (torch.cat(loaded) if len(loaded) > 1 else loaded[0]).numpy()
            if storage.is_float:
                writer.add(tensor.name, value.astype(np.float32 if storage.bits == 32 else np.float16))
                continue
            packed = quantize(value, storage.bits, recipe.group_size, tensor.name)
            base = tensor.name.removesuffix(".weight")
            writer.add(f"{base}.scales", packed.scales)
            codes.append((f"{base}.codes", packed.codes))
            log.debug("quantized %s", tensor.name)
        for name, array in codes:
            writer.add(name, array)
