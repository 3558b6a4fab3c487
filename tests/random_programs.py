"""Programs drawn by lot: layers of any kind with any attention, norm, MLP, deltas, depths and carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from programs import WIDTH, program

from edgeloop.runtime.model.blocks import (
    ATTENTION,
    Attention,
    Layer,
    Mlp,
    NormKind,
    Writer,
    llama,
    output_norm,
    parallel,
    post_norm,
)
from edgeloop.runtime.model.ops import Concat, Function
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotation import Interpolated, Llama3, Rotation, Yarn
from edgeloop.runtime.model.weights import Delta, Matrix

FUNCTIONS: Sequence[Function] = ("silu", "gelu", "gelu_tanh", "relu2", "sigmoid", "tanh", "softplus", "relu")


def sandwich(*given: Any) -> str:
    """Llama's layers with norms of outputs."""
    return llama(*given, sandwich=True)


LAYERS: Sequence[Callable[..., str]] = (llama, sandwich, parallel, post_norm, output_norm)


def random_program(seed: int) -> Program:
    """The same one for the same ``seed``."""
    draw = Draw(Random(seed))
    cached, depths = draw.chance(0.85), draw.one(1, 2, 3)
    shared = cached and depths > 1 and draw.chance(0.25)
    carries = ("state", "input") if draw.chance(0.3) else ("state",)
    before, inside, behind = draw.one(0, 0, 1), draw.one(1, 2), draw.one(0, 0, 1, 2)

    def block(w: Writer) -> tuple[str, ...]:
        x = "state"
        if len(carries) > 1:
            w.add(Concat(carries, "both"))
            w.linear("both", ("adapted",), "adapter", Matrix({"adapter": WIDTH}, 2 * WIDTH, draw.chance(0.5)))
            x = "adapted"
        layers = [draw.layer(depths, cached, shared) for _ in range(inside)]
        return (draw.stack(w, x, "b", layers, 0 if depths == 1 else None), *carries[1:])

    return program(
        {},
        lambda w: draw.stack(w, "embedded", "a", [draw.layer(1, cached) for _ in range(before)]),
        [block],
        epilogue=lambda w: draw.stack(w, "state", "c", [draw.layer(1, cached) for _ in range(behind)]),
        schedule=(0,) * depths,
        carries=carries,
        tied=draw.chance(0.5),
        cap=draw.one(None, 30.0),
    )


class Draw:
    """What is drawn, in the order in which it is asked for."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def one(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def stack(self, w: Writer, x: str, segment: str, layers: Sequence[Layer], at: int | None = None) -> str:
        """``layers`` one after the other, each of a kind of its own."""
        for number, layer in enumerate(layers):
            x = self.one(*LAYERS)(w, x, f"{segment}.{number}", layer, at)
        return x

    def layer(self, depths: int, cached: bool, shared: bool = False) -> Layer:
        looped = depths > 1
        parts = (*ATTENTION, "gate_proj", "up_proj", "down_proj") if looped and self.chance(0.6) else ()
        return Layer(
            WIDTH,
            replace(self.attention(cached), slot="first" if shared else "own"),
            Mlp(self.one(8, 12, 34), self.one(*FUNCTIONS), self.chance(0.6), self.chance(0.4)),
            NormKind(self.one(1e-5, 1e-6), self.one("rms", "layer"), self.chance(0.5)),
            depths=depths,
            norm_rows=looped and self.chance(0.5),
            own_attention=looped and not shared and self.chance(0.2),
            deltas={part: Delta(self.one(1, 2, 3), self.chance(0.4)) for part in parts if self.chance(0.5)},
        )

    def attention(self, cached: bool) -> Attention:
        kv_heads, size = self.one(1, 2, 3), self.one(2, 4, 6, 8)
        scaling = self.one(None, Interpolated(2.0), Llama3(8.0, 1.0, 4.0, 16), Yarn(4.0, 16, 1.1))
        dims = self.one(*range(2, size + 1, 2))
        return Attention(
            heads=kv_heads * self.one(1, 2, 3),
            kv_heads=kv_heads,
            head_dim=size,
            rotation=self.one(None, Rotation(dims, self.one(100.0, 1e4), scaling), Rotation(dims, 1e4)),
            pairs=self.chance(0.4),
            scale=self.one(None, None, 0.3),
            window=self.one(None, None, 4, 9),
            cap=self.one(None, None, 20.0),
            mask="causal" if cached else self.one("both", "causal"),
            cached=cached,
            # The norm of two numbers says little more than which of them is the larger.
            qk_norm=self.one("none", "none", "heads", "width") if size > 2 else "none",
            bias=self.chance(0.4),
            out_bias=self.chance(0.4),
        )
