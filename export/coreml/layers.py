"""A layer in MIL: RMSNorm, RoPE, attention over a state's rows, SwiGLU, with the deltas of one depth.

Float16 throughout. T new tokens, C rows of a state, D width, F intermediate size, H heads, K KV heads, G = H/K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from ...runtime.spec import Spec
from ...runtime.weights import projection_shapes, split_rows
from .constants import Constants, Var
from .plan import Application, Plan

HIDDEN = np.float16(-3e4)
"""Added to the scores of tokens that are not seen: its exponential is 0 in float16 and in float32."""
SMALLEST = np.float16(2.0**-4)
"""RMSNorm divides by a row's largest value, at least by this: see ``norm``."""


@dataclass(frozen=True)
class Tokens:
    """What a function knows of its T tokens.

    cos, sin [1, T, 1, hd], sin with its first half negated; mask [1, 1, G·T, C]; start and stop [1], their rows.
    """

    count: int
    cos: Var
    sin: Var
    mask: Var
    start: Var
    stop: Var


class Layers:
    """The layers of one function, with its constants and the newest value of each state.

    A state is read once, and every later layer gets the value that the one before it wrote: coremltools' pass
    remove_redundant_ops takes a second read for the first, and drops what was written in between.
    """

    def __init__(self, plan: Plan, constants: Constants, states: dict[str, Var]) -> None:
        self.plan, self.constants, self._states = plan, constants, states
        self._values: dict[str, Var] = {}
        self._shapes = projection_shapes(plan.spec)

    @property
    def spec(self) -> Spec:
        return self.plan.spec

    def tokens(self, position: Var, count: int) -> Tokens:
        """``count`` tokens, the first at ``position`` [1] int32."""
        steps = self.constants.array(f"steps.{count}", np.arange(count, dtype=np.int32))
        positions = mb.add(x=position, y=steps)
        # The padding of the last chunk has positions behind the end of the tables.
        inside = mb.minimum(x=positions, y=np.int32(self.spec.context_length - 1))
        turns = [
            mb.gather(x=self.constants.array(f"rope.{f}", table), indices=inside, axis=0)
            for f, table in zip(("cos", "sin"), self.plan.turns, strict=True)
        ]
        width = self.spec.head_dim
        cos, sin = (
            mb.reshape(x=mb.concat(values=halves, axis=-1), shape=[1, count, 1, width])
            for halves in ((turns[0], turns[0]), (mb.mul(x=turns[1], y=np.float16(-1)), turns[1]))
        )
        rows = self.constants.array("rows", np.arange(self.plan.capacity, dtype=np.int32)[None])
        column = mb.expand_dims(x=positions, axes=[1])
        unseen = mb.less(x=column, y=rows)
        if (window := self.spec.window) is not None:
            old = mb.greater_equal(x=mb.sub(x=column, y=rows), y=np.int32(window))
            unseen = mb.logical_or(x=unseen, y=old)
        mask = mb.mul(x=mb.cast(x=unseen, dtype="fp16"), y=HIDDEN)
        groups = self.spec.heads // self.spec.kv_heads
        mask = mb.expand_dims(x=mb.tile(x=mask, reps=[groups, 1]), axes=[0, 1])
        stop = mb.add(x=position, y=np.array([count], np.int32))
        return Tokens(count, cos, sin, mask, position, stop)

    def norm(self, x: Var, name: str, repeat: int | None = None) -> Var:
        """x [..., D] → x / rms(x) · weight; ``repeat``: which row of the weight, where it has rows.

        Squares of float16 overflow from 256 on and vanish below 2e-4, so each row is first divided by its largest
        value m; then eps is divided by m². Where m is below 1/16, eps is most of the sum anyway.
        """
        largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=SMALLEST)
        inverse = mb.inverse(x=largest, epsilon=np.float16(0))
        scaled = mb.mul(x=x, y=inverse)
        mean = mb.reduce_mean(x=mb.square(x=scaled), axes=[-1], keep_dims=True)
        eps = mb.square(x=mb.mul(x=inverse, y=np.float16(self.spec.norm_eps**0.5)))
        normed = mb.mul(x=scaled, y=mb.rsqrt(x=mb.add(x=mean, y=eps), epsilon=np.float16(0)))
        return mb.mul(x=normed, y=self.constants.half(f"{name}.weight", repeat))

    def apply(self, x: Var, layer: Application, tokens: Tokens) -> Var:
        """x [1, T, D] → [1, T, D], its K and V written to the states."""
        a = self._attention(self.norm(x, f"{layer.prefix}.attention_norm", layer.norm), layer, tokens)
        if self.spec.sandwich_norms:
            a = self.norm(a, f"{layer.prefix}.attention_out_norm", layer.norm)
        x = mb.add(x=x, y=a)
        h = self.norm(x, f"{layer.prefix}.mlp_norm", layer.norm)
        gate_up = self.constants.linear(h, f"{layer.prefix}.gate_up_proj", self.spec.hidden_size)
        gate, up = mb.split(x=gate_up, num_splits=2, axis=-1)
        gate, up = self._delta(gate, h, layer, "gate_proj"), self._delta(up, h, layer, "up_proj")
        h = mb.mul(x=mb.silu(x=gate), y=up)
        m = self.constants.linear(h, f"{layer.prefix}.down_proj", self.spec.intermediate_size)
        m = self._delta(m, h, layer, "down_proj")
        if self.spec.sandwich_norms:
            m = self.norm(m, f"{layer.prefix}.mlp_out_norm", layer.norm)
        return mb.add(x=x, y=m)

    def fill(self, x: Var, layer: Application, tokens: Tokens) -> None:
        """K and V of x [1, T, D] as the layer's input, into the states."""
        self._keys_values(self.norm(x, f"{layer.prefix}.attention_norm", layer.norm), layer, tokens)

    def _attention(self, x: Var, layer: Application, tokens: Tokens) -> Var:
        spec, count = self.spec, tokens.count
        if not layer.reads:
            self._keys_values(x, layer, tokens)
        q = self.constants.linear(x, f"{layer.prefix}.qkv_proj", spec.hidden_size, split_rows(spec)["q_proj"])
        q = self._turned(self._delta(q, x, layer, "q_proj"), spec.heads, tokens)
        # The query heads of a KV head go through one matrix product as its rows, so that K and V are not repeated.
        q = mb.reshape(x=q, shape=[1, spec.kv_heads, spec.heads // spec.kv_heads * count, spec.head_dim])
        keys, values = (self._row(f"{layer.stage}_{side}", layer.row) for side in ("keys", "values"))
        out = mb.scaled_dot_product_attention(query=q, key=keys, value=values, attn_mask=tokens.mask)
        out = self._tokens_first(mb.reshape(x=out, shape=[1, spec.heads, count, spec.head_dim]), count)
        width = spec.heads * spec.head_dim
        y = self.constants.linear(out, f"{layer.prefix}.o_proj", width)
        return self._delta(y, out, layer, "o_proj")

    def _keys_values(self, x: Var, layer: Application, tokens: Tokens) -> None:
        spec = self.spec
        rows = split_rows(spec)["kv_proj"]
        kv = self.constants.linear(x, f"{layer.prefix}.qkv_proj", spec.hidden_size, rows)
        k, v = mb.split(x=kv, num_splits=2, axis=-1)
        k, v = self._delta(k, x, layer, "k_proj"), self._delta(v, x, layer, "v_proj")
        k = self._turned(k, spec.kv_heads, tokens)
        v = self._heads_first(
            mb.reshape(x=v, shape=[1, tokens.count, spec.kv_heads, spec.head_dim]), tokens.count
        )
        self._write(f"{layer.stage}_keys", layer.row, k, tokens)
        self._write(f"{layer.stage}_values", layer.row, v, tokens)

    def _delta(self, y: Var, x: Var, layer: Application, projection: str) -> Var:
        """y [..., out] plus the repeat's LoRA of x [..., in]."""
        if projection not in self.spec.segments[layer.segment].lora:
            return y
        name = f"{layer.prefix}.{projection}"
        low = self.constants.linear_by(x, self.constants.half(f"{name}.lora_a", layer.repeat))
        return mb.add(
            x=y, y=self.constants.linear_by(low, self.constants.half(f"{name}.lora_b", layer.repeat))
        )

    def _turned(self, x: Var, heads: int, tokens: Tokens) -> Var:
        """x [1, T, heads·hd] → [1, heads, T, hd], each head turned to its token's position."""
        x = mb.reshape(x=x, shape=[1, tokens.count, heads, self.spec.head_dim])
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        across = mb.mul(x=mb.concat(values=[second, first], axis=-1), y=tokens.sin)
        return self._heads_first(mb.add(x=mb.mul(x=x, y=tokens.cos), y=across), tokens.count)

    def _heads_first(self, x: Var, count: int) -> Var:
        """x [1, T, heads, hd] → [1, heads, T, hd]; of one token that is a reshape, which states like better."""
        if count == 1:
            return mb.reshape(x=x, shape=[1, x.shape[2], 1, x.shape[3]])
        return mb.transpose(x=x, perm=[0, 2, 1, 3])

    def _tokens_first(self, x: Var, count: int) -> Var:
        """x [1, H, T, hd] → [1, T, H·hd]."""
        if count > 1:
            x = mb.transpose(x=x, perm=[0, 2, 1, 3])
        return mb.reshape(x=x, shape=[1, count, self.spec.heads * self.spec.head_dim])

    def _value(self, state: str) -> Any:
        if state not in self._values:
            self._values[state] = mb.read_state(input=self._states[state])
        return self._values[state]

    def _row(self, state: str, row: int) -> Var:
        """One row of a state, [1, K, C, hd]."""
        _, *rest = self.plan.states[state]
        return mb.slice_by_index(x=self._value(state), begin=[row, 0, 0, 0], end=[row + 1, *rest])

    def _write(self, state: str, row: int, new: Var, tokens: Tokens) -> None:
        """new [1, K, T, hd] into the tokens' rows of one row of a state."""
        heads, width = self.spec.kv_heads, self.spec.head_dim
        zero, end = np.array([0], np.int32), np.array([width], np.int32)
        begin = mb.concat(values=[np.array([row, 0], np.int32), tokens.start, zero], axis=0)
        stop = mb.concat(values=[np.array([row + 1, heads], np.int32), tokens.stop, end], axis=0)
        value = mb.slice_update(x=self._value(state), update=new, begin=begin, end=stop)
        self._values[state] = mb.coreml_update_state(state=self._states[state], value=value)
