"""Whole tokens in one call of an engine: what it is told of the mode, and what it knows of a sequence.

``decode/whole_tokens.py`` says which modes an engine is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..model.program import Routing

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

RuleName = Literal["never", "depth", "latent", "gate", "probe", "expert", "token"]
SkippedName = Literal["none", "exact", "propagate", "latest", "skip"]


@dataclass(frozen=True, eq=False)
class TokenMode:
    """Who leaves after which of the ``depths``, and what that means for K and V.

    ``stop``: depths that a token runs at most. ``thresholds``: one a depth but the last; of expert choice one alone.
    ``skipped``: what becomes of K and V of depths that a token did not run; ``none``: none are missing. ``shared``: one
    slot serves all depths. ``heads``: what rules compute of a state. ``routing``: the router, which sends everybody on
    if ``everyone``.
    """

    rule: RuleName
    depths: int
    stop: int
    skipped: SkippedName
    shared: bool
    heads: Mapping[str, F32]
    thresholds: tuple[float, ...] = ()
    routing: Routing | None = None
    everyone: bool = False


class WaitingStates(NamedTuple):
    """States [n, D] of the tokens at ``positions`` [n], which wait for a depth."""

    positions: I64
    states: F32


@dataclass(frozen=True)
class TokenState:
    """What an engine knows of a sequence of ``cached`` tokens: by depth, how many of them its slot holds (``filled``),
    which (``held``, where some are missing; else empty), and what waits for it."""

    cached: int
    filled: tuple[int, ...]
    held: tuple[I64, ...]
    waiting: tuple[WaitingStates, ...]


@dataclass(frozen=True)
class TokenCounts:
    """What a decoder's tokens took so far; see ``timing.LoopClock``. ``nanoseconds``: within the engine."""

    tokens: int
    nanoseconds: int
    block_calls: int
    rows: int
    decisions: int
    decide_ns: int
    block_ns: tuple[int, ...]
    calls: tuple[int, ...]


class Choosing(Protocol):
    """How a token is chosen: what ``SamplingOptions`` says beside logit bias and penalties."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int


class TokenDecoder(Protocol):
    """Runs the tokens of one sequence, whole ones, one after the other."""

    depth: int
    """Depths that the last token ran."""

    def step(self, token: int) -> F32:
        """Run one more token → its logits [1, V], valid until the next call."""
        ...

    def choose_by(self, options: Choosing) -> None:
        """Let ``next`` choose by these."""
        ...

    def next(self, token: int) -> int:
        """Run one more token and return the one that is chosen behind it; −1 where its logits leave none."""
        ...

    @property
    def logits(self) -> F32:
        """The logits [1, V] of the last token, valid until the next call."""
        ...

    def read(self) -> TokenState:
        """Return what it knows of the sequence."""
        ...

    def write(self, state: TokenState) -> None:
        """Go on from ``state``, whose rows the slots hold."""
        ...

    def counts(self) -> TokenCounts:
        """Return what its tokens took."""
        ...
