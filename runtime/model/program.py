"""A model as data: what each stage computes, op by op, and the loop between the stages.

``prologue`` makes the carries from the tokens' ids, the ``loop`` changes them once a depth, ``epilogue`` (the layers
after the loop) and ``head`` make logits of them; an encoder may have a head without ops, whose output is its input.
Between stages the carries of a row lie side by side, as its *state* [N, width].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from .ops import Attend, AttendTwice, Embed, Linear, Op, Rotate, Shift, weight_fields
from .rotation import Rotation
from .weights import Matrix, Weight

STAGES = ("prologue", "block", "epilogue")
"""The stages that have caches, and for which an engine has calls."""


class Stage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ops from input values to output values; a value is written once, before it is read.

    ``layers``: the value that enters each layer, in the order of the layers' caches.
    """

    inputs: tuple[str, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...] = ()


class Carry(Struct, frozen=True, forbid_unknown_fields=True):
    """A value [N, width] that goes from depth to depth."""

    name: str
    width: int


class Loop(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``schedule`` is the number of the block at each depth; blocks take and return the carries, in their order.

    ``open_ended``: the model may be run at another number of depths; the last block is then repeated or cut.
    """

    carries: tuple[Carry, ...]
    blocks: tuple[Stage, ...]
    schedule: tuple[int, ...]
    open_ended: bool = False


class Routing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A router that decides which depths a token runs (Mixture-of-Recursions, arXiv 2507.10524, section 2.2).

    A score is z = head(x / temperature), p = squash(z). ``expert``: depth r scores the tokens that ran depth
    r − 1; those that go on get x ← x + g·block(x), the others keep x. ``token``: one head scores every depth at once
    from the loop's input x₀, c = argmax(p + bias) is the last depth that the token runs, and x₀ + g·block(…) of
    that depth is the loop's output. g is α·p when ``gated``, else 1 for token and α for expert choice.
    """

    kind: Literal["expert", "token"]
    squash: Literal["sigmoid", "tanh", "softmax", "none"]
    alpha: float
    gated: bool = True
    temperature: float = 1.0
    hidden: bool = False
    """The head is an MLP with an exact GELU, not one linear layer."""
    auxiliary: bool = False
    """Expert choice: at generation a second head decides which tokens go on; the first one still gates."""
    capacity: tuple[float, ...] = ()
    """Expert choice: the share of a chunk's tokens that each depth takes in training (``chunk-topk``)."""


@dataclass(frozen=True)
class CacheShape:
    """What one KV cache of a stage holds: K and V [slots, kv_heads, rows, head_dim]."""

    kv_heads: int
    head_dim: int
    window: int | None
    shared: bool
    """All depths read what depth 0 wrote."""


class Program(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The architecture of a model, complete: two models with equal programs and weights compute the same.

    Heads that the host computes itself, float32 (R the depths, D the width of a state, M a router's hidden
    size): ``gate.weight`` [D] and ``gate.bias`` [1] with ``exit_gate``, the probability to stop after each depth
    (Ouro); with ``routing`` ``router.weight`` [R, D], or [R, M] behind ``router.hidden`` [R or 1, M, D] (1: one hidden
    layer for all depths), the same under ``auxiliary.``, and ``router.bias`` [R] for token choice.
    """

    family: str
    vocab_size: int
    context_length: int
    prologue: Stage
    loop: Loop
    epilogue: Stage
    head: Stage
    weights: dict[str, Weight]
    exit_gate: bool = False
    routing: Routing | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def depths(self) -> int:
        """R: how often the host applies a block."""
        return len(self.loop.schedule)

    @property
    def width(self) -> int:
        """The width of a state: its carries side by side."""
        return sum(carry.width for carry in self.loop.carries)

    def stage(self, name: str, depth: int = 0) -> Stage:
        """Return the stage ``prologue`` or ``epilogue``, or the ``block`` of ``depth``."""
        if name == "block":
            return self.loop.blocks[self.loop.schedule[depth]]
        return self.prologue if name == "prologue" else self.epilogue

    def caches(self, name: str) -> tuple[CacheShape, ...]:
        """Return the KV caches of a stage, by their numbers; all blocks of a loop use the same ones."""
        stages = self.loop.blocks if name == "block" else (self.stage(name),)
        found: dict[int, CacheShape] = {}
        for stage in stages:
            for op in stage.ops:
                if isinstance(op, Attend | AttendTwice) and op.cache is not None:
                    shared = isinstance(op, Attend) and op.slot == "first"
                    window = op.window if isinstance(op, Attend) else None
                    shape = CacheShape(op.kv_heads, op.head_dim, self._real(window), shared)
                    found.setdefault(op.cache, shape)
        return tuple(found[number] for number in sorted(found))

    def _real(self, window: int | None) -> int | None:
        """Return ``window``, or None when it covers the whole context."""
        return None if window is None or window >= self.context_length else window

    @property
    def window(self) -> int | None:
        """The most tokens that any attention sees, the newest included; None where one sees the whole context."""
        windows = [shape.window for name in STAGES for shape in self.caches(name)]
        known = [window for window in windows if window is not None]
        return max(known) if windows and len(known) == len(windows) else None

    @property
    def moving_window(self) -> int | None:
        """The window that caches move with: tokens that no later one sees make room. None where rows stay.

        They stay where depths share K/V, too: depth 0 would move out rows that the depths after it still read.
        """
        return None if self.shares_kv else self.window

    @property
    def shares_kv(self) -> bool:
        """Whether the depths of the loop read the K/V of depth 0."""
        return self.depths > 1 and any(shape.shared for shape in self.caches("block"))

    @property
    def prefix_lm(self) -> bool:
        """Whether the tokens of a prompt see each other: it has to go in at once, and is another one if it grows."""
        return any(
            isinstance(op, Attend) and op.mask == "prefix" for stage in self.stages for op in stage.ops
        )

    @property
    def kv_slots(self) -> int:
        """KV slots of a sequence in the block's caches: one a depth, or one for all where depths share."""
        return 1 if self.shares_kv else self.depths

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float32 K/V of a token that runs every depth; routed models fill only a part of them."""
        slots = {"block": self.kv_slots}
        return sum(
            8 * shape.kv_heads * shape.head_dim * slots.get(name, 1)
            for name in STAGES
            for shape in self.caches(name)
        )

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """The different rotations of all stages, in the order of their first use."""
        return tuple(dict.fromkeys(op.by for op in self.rotates))

    @property
    def rotates(self) -> Iterator[Rotate]:
        """Yield the Rotate ops of all stages."""
        return (op for stage in self.stages for op in stage.ops if isinstance(op, Rotate))

    def differs(self, stage: Stage) -> bool:
        """Return whether anything that ``stage`` uses differs between depths."""
        return any(
            getattr(op, "at", 0) is None and self.weights[name].per_depth
            for op in stage.ops
            for _, name in weight_fields(op)
        )

    @property
    def own_matrices(self) -> bool:
        """Whether a linear op has a whole matrix for each depth."""
        linear = (op for stage in self.stages for op in stage.ops if isinstance(op, Linear))
        return any(self.matrix(op.weight).copies > 1 for op in linear)

    @property
    def stages(self) -> Iterator[Stage]:
        """Yield every stage: the prologue, the blocks, the epilogue, the head."""
        yield self.prologue
        yield from self.loop.blocks
        yield self.epilogue
        yield self.head

    @property
    def encoder(self) -> bool:
        """Whether no attention has a cache: calls are of whole texts then, and there is no next token."""
        attends = any(isinstance(op, Attend | AttendTwice) for stage in self.stages for op in stage.ops)
        return attends and not any(self.caches(name) for name in STAGES)

    @property
    def token_types(self) -> int:
        """How many token types the prologue distinguishes; 0 where it takes none."""
        tables = (op.table for op in self.prologue.ops if isinstance(op, Embed) and op.ids == "types")
        return min((self.matrix(table).rows for table in tables), default=0)

    @property
    def kept_rows(self) -> int:
        """How many ``Shift`` ops a block has, each of which keeps the last row of a lane."""
        return sum(isinstance(op, Shift) for op in self.loop.blocks[0].ops)

    @property
    def applied_layers(self) -> int:
        """The number of layers of the same model unrolled."""
        blocks = sum(len(self.stage("block", d).layers) for d in range(self.depths))
        return len(self.prologue.layers) + blocks + len(self.epilogue.layers)

    @property
    def tied_embedding(self) -> bool:
        """Whether the embedding's table is also the matrix of the logits."""
        tables = {op.table for stage in self.stages for op in stage.ops if isinstance(op, Embed)}
        return any(weight in tables for op in self.head.ops for weight in (getattr(op, "weight", None),))

    def matrix(self, name: str) -> Matrix:
        """Return the matrix ``name``."""
        weight = self.weights[name]
        assert isinstance(weight, Matrix)
        return weight
