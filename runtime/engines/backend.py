"""The contract between the depth loop and an engine.

An engine runs three stages. Each call takes B lanes × S new tokens. A lane is one (sequence, depth) pair
and owns one KV slot in every cache of the stage; the lanes of a call use the slots ``first_slot …
first_slot + B − 1``. Prefill is 1 lane × S tokens, decode 1 × 1, and one call may mix depths.

Where depths share K/V (``program.shares_kv``) a slot belongs to a sequence, and calls of the block are
narrower, because the operator is: 1 lane × S tokens or B lanes × 1 token, none of them padding, positions that
follow on each other, and either every lane at depth 0 or none. Depth 0 goes first and writes the new rows; the
deeper ones, with the same ``cached`` and ``tokens``, find them there.

Calls that serve many sequences have packed lanes (``packed.py``): their states hold the valid rows only. An engine
that was opened for them takes no others, since it would hold the weights of both forms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..model.program import Program
from .capabilities import Capabilities
from .kv import KVCache
from .tokens import TokenBatch, TokenDecoder, TokenMode

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lanes:
    """The lanes of one call.

    depth [B] int64: which deltas apply. cached [B] int32: tokens already valid in the lane's slot (T).
    tokens [B] int32: how many of the S new tokens are valid (the rest is right padding; 0 = idle lane).
    positions [B, S] int64: true positions, for RoPE. last [B] and longest [1] int32 follow from them: the index of
    each lane's last token after the call, and the largest number of tokens of a lane. types [B, S] int64, for prologues
    that take them; None: all are 0.

    A caller may keep a Lanes and write its arrays in place, followed by ``refresh``: engines keep what they prepared
    for it. ``at`` makes the lanes of another stage or depth that share those arrays.
    """

    depth: I64
    cached: I32
    tokens: I32
    positions: I64
    first_slot: int = 0
    last: I32 = field(default_factory=lambda: np.empty(0, np.int32))
    longest: I32 = field(default_factory=lambda: np.zeros(1, np.int32))
    types: I64 | None = None

    def __post_init__(self) -> None:
        for name, dtype in (
            ("depth", np.int64),
            ("cached", np.int32),
            ("tokens", np.int32),
            ("positions", np.int64),
        ):
            # Engines take addresses. What is right already stays the caller's own array.
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        if len(self.last) != len(self.cached):
            object.__setattr__(self, "last", np.empty_like(self.cached))
            self.refresh()

    def refresh(self) -> None:
        """Recompute ``last`` and ``longest`` from ``cached`` and ``tokens``."""
        if len(self.last) == 1:  # every token comes by here, and numbers are quicker than arrays
            total = self.cached.item() + self.tokens.item()
            self.last[0], self.longest[0] = total - 1, total
            return
        np.add(self.cached, self.tokens, out=self.last)
        self.longest[0] = self.last.max()
        np.subtract(self.last, 1, out=self.last)

    @property
    def state_shape(self) -> tuple[int, int]:
        """The first two sizes of a state: (B, S)."""
        batch, length = self.positions.shape
        return batch, length

    def at(self, depth: int, first_slot: int) -> Lanes:
        """Return the same lanes, all at ``depth`` and in the slots from ``first_slot`` on; the other arrays are
        shared."""
        return replace(self, depth=np.full_like(self.depth, depth), first_slot=first_slot)

    @staticmethod
    def single(depth: int, cached: int, tokens: int, slot: int) -> Lanes:
        """Return one lane whose S = ``tokens`` new tokens follow directly on the ``cached`` ones."""
        return Lanes(
            depth=np.array([depth], np.int64),
            cached=np.array([cached], np.int32),
            tokens=np.array([tokens], np.int32),
            positions=np.arange(cached, cached + tokens, dtype=np.int64)[None],
            first_slot=slot,
        )


class Backend(Protocol):
    """What an engine provides. Returned arrays are valid until the next call of the same stage."""

    name: str
    program: Program

    @property
    def can(self) -> Capabilities:
        """What the engine can do that others cannot."""
        ...

    def close(self) -> None:
        """Release programs, weights and states now; the engine cannot be used any more. Closing twice is fine."""
        ...

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Return zeroed caches of ``sequences`` × ``capacity`` tokens; ``slots`` as in ``KVCache.allocate``."""
        ...

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the state [B, S, D] of ids [B, S] after the embedding and the layers before the loop."""
        ...

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after the looped layers were applied once, each lane at its own depth.

        UsageError when the depths share K/V and the lanes are not what the module's text allows.
        """
        ...

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write the K/V that ``state`` [B, S, D] gives as the input of every layer of the block.

        They go into the rows cached … cached + tokens − 1 of the lanes' slots, with the norms and deltas of each
        lane's depth; no state is computed. UsageError for models that ``can_fill`` says no to.
        """
        ...

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the logits [N, V] of the flat rows ``rows`` [N] of state [B, S, D]: layers after the loop, norm,
        head."""
        ...


class RunsPrompts(Backend, Protocol):
    """An engine that can run a prompt through all stages at once, which is quicker than stage by stage."""

    def prompt(self, ids: I64, read: bool, lanes: Lanes, cache: KVCache) -> F32:
        """Run ids [1, S] at full depth; return the logits [1, V] of the last token, or [0, V] unless ``read``.

        ``lanes`` are the prologue's.
        """
        ...


def runs_prompts(backend: Backend) -> TypeGuard[RunsPrompts]:
    """Return whether ``backend`` declares that it runs whole prompts."""
    return backend.can.whole_prompt


class RunsTokens(Backend, Protocol):
    """An engine that runs whole tokens, however deep they go, without the host between their depths."""

    def token_decoder(self, mode: TokenMode, cache: KVCache, sequence: int) -> TokenDecoder:
        """Return what runs the tokens of a ``sequence`` of ``cache``, which is empty. ``mode``: how deep they go."""
        ...

    def token_batch(self, cache: KVCache) -> TokenBatch:
        """Return what runs tokens of many sequences of ``cache`` at once."""
        ...


def runs_tokens(backend: Backend) -> TypeGuard[RunsTokens]:
    """Return whether ``backend`` declares that it runs whole tokens."""
    return backend.can.whole_tokens


def can_fill(program: Program) -> bool:
    """Return whether a token that skips depths can get K/V there without running them.

    The model must have K/V of its own at each depth, in rows that stay where they are; shared matrices, because
    the fill stage has those of K/V alone; and no Shift: a depth that keeps the row of the token before has none
    of a token that skipped it.
    """
    return (
        bool(program.caches("block"))
        and not program.kept_rows
        and not program.own_matrices
        and not program.shares_kv
        and program.depths > 1
        and program.routing is None
        and program.window is None
    )


def check_fill(program: Program) -> None:
    """Raise UsageError unless ``can_fill``."""
    if not can_fill(program):
        raise UsageError(
            "K/V of skipped depths can be filled in only where each depth has its own, without router, "
            "sliding window and attention matrices for each depth; this model needs another policy for skipped K/V"
        )


def fresh_tokens(lanes: Lanes) -> int:
    """Return for how many new tokens a block whose depths share K/V computes them: S at depth 0, 0 deeper.

    UsageError for lanes that such a block cannot take (see the module's text).
    """
    batch, length = lanes.positions.shape
    first = int((lanes.depth == 0).sum())
    if 0 < first < batch:
        raise UsageError(
            "a call with lanes at depth 0 and deeper ones, but the depths of this model share K/V; "
            "call depth 0 first"
        )
    if (batch > 1 and length > 1) or (lanes.tokens != length).any():
        raise UsageError(
            f"{batch} lanes of {lanes.tokens.tolist()} valid tokens in {length}, but the depths of this model share "
            "K/V; wanted one lane without padding, or lanes of one token"
        )
    return length if first else 0
