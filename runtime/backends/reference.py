"""The oracle: a recursive model in plain numpy, one lane after the other, in the words of ``Spec``.

Nothing here is clever, so that it can be read against a paper. Every other engine is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..backend import F32, I64, Lanes, check_fill, fresh_tokens
from ..bundle import Bundle
from ..kv import KVCache, resident
from ..llama_like import spec_of
from ..manifest import Quantization
from ..model.program import Program
from ..model.rotary import turns
from ..model.rotation import Rotation
from ..packed import PackedLanes
from ..weights import MATRICES, Array, Weights, copies, projection_shapes, read_tensors

WEIGHTS_TARGET = "onnx"
"""The target whose weights file this engine reads."""


@dataclass(frozen=True)
class Application:
    """One application of a physical layer: which weights, which row of its deltas, which KV pair and slot.

    ``reads``: it makes no K and V, the slot holds those of another depth.
    """

    prefix: str
    repeat: int
    cache: int
    slot: int
    reads: bool = False


@dataclass(frozen=True)
class Lane:
    """One lane of a call: T ``cached`` tokens, and the positions [n] of its n valid new ones."""

    cached: int
    positions: I64


class ReferenceBackend:
    """numpy only. Slow, and right: float32 arithmetic on the stored weights."""

    name = "reference"

    def __init__(self, program: Program, tensors: Mapping[str, Array], quantization: Quantization) -> None:
        """``tensors``: the stored tensors by name (see ``weights.py``). BundleError when one is missing."""
        self.program = program
        spec = self.spec = spec_of(program)
        self._weights = Weights(spec, tensors, quantization.group_size)
        self._projections = projection_shapes(spec)

    @staticmethod
    def open(bundle: Bundle) -> ReferenceBackend:
        """The model of ``bundle``; BundleError when its weights cannot be read."""
        tensors = read_tensors(bundle.path(bundle.manifest.targets[WEIGHTS_TARGET].weights))
        return ReferenceBackend(bundle.program, tensors, bundle.manifest.quantization)

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Zeroed caches of ``sequences`` sequences × ``capacity`` tokens."""
        return KVCache.allocate(self.program, sequences, capacity, slots)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]."""
        batch, width = ids.shape  # of packed lanes, as in every stage, [N, 1]
        state = self._weights.rows("embed", ids.reshape(-1)).reshape(batch, width, -1)
        return self._stage("prologue", state, lanes, cache)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D], each lane at its own depth."""
        if self.program.shares_kv and not isinstance(lanes, PackedLanes):
            fresh_tokens(lanes)  # what it cannot take, no engine can
        state = self._stage("block", state, lanes, cache)
        return self._norm(state, "norm", 0) if self.spec.loop_norm else state

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → logits [N, V] of the flat rows ``rows`` [N]."""
        state = self._stage("epilogue", state, lanes, cache)
        picked = state.reshape(-1, self.spec.hidden_size)[rows]
        if not self.spec.loop_norm:  # else the block has applied it already
            picked = self._norm(picked, "norm", 0)
        return picked @ self._weights.matrix("embed" if self.spec.tied_embedding else "head").T

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """K and V of ``state`` [B, S, D], or the rows of packed lanes, as every layer's input, into their slots."""
        check_fill(self.program)
        state = lanes.pad(state) if isinstance(lanes, PackedLanes) else state
        for b in np.flatnonzero(lanes.tokens).tolist():
            n = int(lanes.tokens[b])
            lane = Lane(int(lanes.cached[b]), lanes.positions[b, :n])
            for layer in self._applications("block", int(lanes.depth[b]), lanes.first_slot + b):
                x = self._norm(state[b, :n], f"{layer.prefix}.attention_norm", layer.repeat)
                _, *new = self._queries_keys_values(x, lane, layer)
                for buffer, rows in zip(cache.stages["block"][layer.cache], new, strict=True):
                    buffer[layer.slot, :, lane.cached : lane.cached + n] = rows

    def _stage(self, stage: str, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """The layers of ``stage`` on the valid tokens of each lane; padded rows come out as zeros."""
        packed = lanes if isinstance(lanes, PackedLanes) else None
        state = packed.pad(state) if packed else state
        out = np.zeros_like(state)
        for b in range(len(lanes.tokens)):
            n = int(lanes.tokens[b])
            if n == 0:
                continue
            lane = Lane(int(lanes.cached[b]), lanes.positions[b, :n])
            x = state[b, :n]
            for layer in self._applications(stage, int(lanes.depth[b]), lanes.first_slot + b):
                x = self._layer(x, lane, layer, cache.stages[stage][layer.cache])
            out[b, :n] = x
        return packed.pack(out) if packed else out

    def _applications(self, stage: str, depth: int, slot: int) -> Iterator[Application]:
        """The layers that one call of ``stage`` applies, in order."""
        stages = self.spec.stages
        numbers = {"prologue": stages.prologue, "block": stages.block, "epilogue": stages.epilogue}[stage]
        looped = stage == "block" and stages.depths > 1
        cache = 0
        for s in numbers:
            segment = self.spec.segments[s]
            for repeat in [depth] if looped else range(segment.repeats):
                for j in range(segment.layers):
                    reads = looped and depth > 0 and self.spec.kv == "shared"
                    yield Application(f"segments.{s}.layers.{j}", repeat, cache, slot, reads)
                    cache += 1

    def _layer(self, x: F32, lane: Lane, layer: Application, pair: tuple[F32, F32]) -> F32:
        """One layer on n tokens: x [n, D] → [n, D]."""
        prefix, repeat = layer.prefix, layer.repeat
        a = self._attention(self._norm(x, f"{prefix}.attention_norm", repeat), lane, layer, pair)
        if self.spec.sandwich_norms:
            a = self._norm(a, f"{prefix}.attention_out_norm", repeat)
        x = x + a
        h = self._norm(x, f"{prefix}.mlp_norm", repeat)
        gate, up = self._linear(h, layer, "gate_up_proj")
        (m,) = self._linear(silu(gate) * up, layer, "down_proj")
        if self.spec.sandwich_norms:
            m = self._norm(m, f"{prefix}.mlp_out_norm", repeat)
        return x + m

    def _attention(self, x: F32, lane: Lane, layer: Application, pair: tuple[F32, F32]) -> F32:
        """Causal grouped-query attention of n new tokens over T cached and themselves: x [n, D] → [n, D]."""
        spec, n, window = self.spec, len(x), self.program.window
        q, k, v = self._queries_keys_values(x, lane, layer)
        slots = (buffer[layer.slot] for buffer in pair)  # [K, rows, head_dim]
        if layer.reads:
            keys, values = (slot[:, : lane.cached + n] for slot in slots)
        else:
            keys, values = (append(s, y, lane.cached, window) for s, y in zip(slots, (k, v), strict=True))
        total = keys.shape[1]  # tokens that can be seen; without a window, all of them
        q = q.reshape(spec.kv_heads, -1, spec.head_dim)  # a KV head's query heads share it
        scores = (q @ keys.transpose(0, 2, 1)).reshape(spec.heads, n, total)
        scores = scores * np.float32(spec.head_dim**-0.5)
        age = total - n + np.arange(n)[:, None] - np.arange(total)  # [n, total]
        seen = (age >= 0) & (age < (window or total))
        weights = softmax(np.where(seen, scores, np.float32(-np.inf)))
        mixed = weights.reshape(spec.kv_heads, -1, total) @ values
        rows = mixed.reshape(spec.heads, n, -1).transpose(1, 0, 2).reshape(n, -1)
        (out,) = self._linear(rows, layer, "o_proj")
        return out

    def _queries_keys_values(self, x: F32, lane: Lane, layer: Application) -> tuple[F32, F32, F32]:
        """x [n, D] → q [H, n, head_dim], k and v [K, n, head_dim], q and k at their positions."""
        q, k, v = (
            y.reshape(len(x), -1, self.spec.head_dim).transpose(1, 0, 2)
            for y in self._linear(x, layer, "qkv_proj")
        )
        cos, sin = turns(Rotation(self.spec.head_dim, self.spec.rope_theta), lane.positions)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _linear(self, x: F32, layer: Application, matrix: str) -> list[F32]:
        """x [n, in] times a stored matrix (of this repeat) plus the repeat's LoRA: [n, out] of each projection."""
        parts, segment = MATRICES[matrix], self.spec.segments[int(layer.prefix.split(".")[1])]
        weight = self._weights.matrix(f"{layer.prefix}.{matrix}")
        if (count := copies(segment, matrix)) > 1:
            weight = np.split(weight, count)[layer.repeat]
        y = x @ weight.T
        ends = np.cumsum([self._projections[p][0] for p in parts])[:-1]
        outputs: list[F32] = np.split(y, ends, axis=-1)
        lora = segment.lora
        for i, projection in enumerate(parts):
            if projection in lora:
                a = self._weights.small(f"{layer.prefix}.{projection}.lora_a")[layer.repeat]
                b = self._weights.small(f"{layer.prefix}.{projection}.lora_b")[layer.repeat]
                outputs[i] = outputs[i] + (x @ a.T) @ b.T
        return outputs

    def _norm(self, x: F32, name: str, repeat: int) -> F32:
        """RMSNorm over the last axis, with the repeat's row of the weight where it has rows."""
        weight = self._weights.small(f"{name}.weight")
        weight = weight[repeat] if weight.ndim == 2 else weight
        mean = np.mean(x * x, axis=-1, keepdims=True)
        normed: F32 = x / np.sqrt(mean + np.float32(self.spec.norm_eps)) * weight
        return normed


def append(slot: F32, new: F32, cached: int, window: int | None) -> F32:
    """Write ``new`` [K, n, head_dim] after ``cached`` tokens into slot [K, rows, head_dim] → all that can be seen."""
    rows, total = slot.shape[1], cached + new.shape[1]
    if window is None or total <= rows:
        slot[:, cached:total] = new
        return slot[:, :total]
    seen = np.concatenate((slot[:, : resident(cached, rows, window)], new), axis=1)
    kept = resident(total, rows, window)
    slot[:, :kept] = seen[:, seen.shape[1] - kept :]
    return seen


def silu(x: F32) -> F32:
    """x·sigmoid(x); tanh keeps it from overflowing."""
    sigmoid: F32 = np.tanh(x * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return x * sigmoid


def softmax(x: F32) -> F32:
    """Softmax over the last axis."""
    e: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """RoPE on x [heads, n, head_dim], halves rotated against each other."""
    first, second = np.split(x, 2, axis=-1)
    rotated: F32 = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return rotated
