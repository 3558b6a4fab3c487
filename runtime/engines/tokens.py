"""Whole tokens in one call of an engine: the mode that it runs them in, and what it knows of a sequence.

``decode/whole_tokens.py`` says which modes an engine may get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..model.program import Routing

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

NO_TOKEN = -1
"""Chosen where logits leave no token."""
RuleName = Literal["never", "depth", "latent", "gate", "probe", "expert", "token"]
SkippedName = Literal["none", "exact", "propagate", "latest", "skip"]


@dataclass(frozen=True, eq=False)
class TokenMode:
    """After which of the ``depths`` a token leaves, and what that means for K/V.

    ``stop``: depths that a token runs at most. ``thresholds``: one a depth but the last; of expert choice one alone.
    ``skipped``: what becomes of K/V of depths that a token did not run; ``none``: none are missing. ``shared``: one
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

    @property
    def temperature(self) -> float:
        """0: the likeliest token."""
        ...

    @property
    def top_k(self) -> int:
        """0: all."""
        ...

    @property
    def top_p(self) -> float:
        """1: all."""
        ...

    @property
    def min_p(self) -> float:
        """0: all."""
        ...

    @property
    def seed(self) -> int:
        """Of the noise."""
        ...


class Turned(NamedTuple):
    """What became of a turn of a batch: the token that was chosen, the depths that the one before it ran, and the
    logits [V] where the host chooses or none could be chosen (−1). ``error``: why it was not run. ``earlier``: tokens
    that were chosen and run in the same call before, each with the depths that the one before it ran."""

    token: int
    depth: int
    logits: F32 | None = None
    error: Exception | None = None
    earlier: Sequence[tuple[int, int]] = ()


Chooser = Literal["host", "decoder", "nobody"]
"""What chooses the token behind those of a turn: nobody, where a text goes on."""


class Turn(Protocol):
    """What a decoder is to run in a batch: a token, or a piece of a text, whose tokens run every depth.

    A text is for decoders without a router, of sequences of which nothing waits for a depth.
    """

    @property
    def decoder(self) -> TokenDecoder:
        """What runs it."""
        ...

    @property
    def text(self) -> I64 | None:
        """The ids [n] of a text; None: it is ``token``."""
        ...

    @property
    def token(self) -> int:
        """An id."""
        ...

    @property
    def chooser(self) -> Chooser:
        """What chooses the next token."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that nothing is run behind."""
        ...

    @property
    def room(self) -> int:
        """Tokens that will be wanted at most, this one's successor among them."""
        ...


class TokenBatch(Protocol):
    """Runs tokens and texts of many sequences of one cache at once: each gets what its decoder alone gives it."""

    calls: int
    """Of the block, in the last ``next``."""
    rows: int
    """Of these calls."""
    ticks: int
    """Tokens of each, at most, in the last ``next``."""

    def next(self, turns: Sequence[Turn], several: bool = False) -> list[Turned]:
        """Run ``turns``, of different sequences. Raises what is about all of them.

        ``several``: as many tokens of each as come within a few milliseconds, if they all choose for themselves, until
        one of them has come to its end.
        """
        ...


@dataclass(frozen=True, eq=False)
class Drafting:
    """Whether tokens are fed before they are final: never, always, or where it pays.

    Of always, for tests and measurements: ``depth`` whose prediction is fed (none from the last one on), whether deeper
    ones are ``judges`` of it, and how many ``lookups`` in the text are fed at once. ``known``: ids [N] that shallow
    depths predict for each position, whatever they do predict, and where [N] they predict another one.
    """

    kind: Literal["auto", "never", "always"] = "auto"
    depth: int = 0
    judges: bool = False
    lookups: int = 0
    known: tuple[I64, npt.NDArray[np.bool_]] | None = None


NO_DRAFTS = Drafting("never")


class DraftsFed(NamedTuple):
    """Drafts that became final or were refuted, and how many became final."""

    fed: int
    right: int


@dataclass(frozen=True)
class DraftReport:
    """What became of drafts: ``looked_up`` in the text, and ``predicted`` by a shallow depth.

    ``reads``: rows that were read out beside those of final tokens. ``saved_ns``: by the table of costs, in all
    sessions of the model. ``costs_ns``: of a stage with 1, 2, … rows. ``threads``: that a call of the block with
    as many uses. ``least``: the odds from which a draft is fed behind a token that has run 0, 1, … depths.
    ``acceptance``: of each depth but the last, in all and by how sure it is, less sure first.
    """

    tokens: int
    passes: int
    reads: int
    looked_up: DraftsFed
    predicted: DraftsFed
    saved_ns: float
    costs_ns: Mapping[str, tuple[float, ...]]
    threads: tuple[int, ...]
    least: tuple[float, ...]
    acceptance: tuple[float, ...]
    by_margin: tuple[tuple[float, ...], ...]


class TokenDecoder(Protocol):
    """Runs the tokens of one sequence, whole ones, one after the other."""

    depth: int
    """Depths that the last token ran."""

    @property
    def cached(self) -> int:
        """Tokens that were run: also of a call that was interrupted, the token that it was given, if it ran."""
        ...

    def step(self, token: int) -> F32:
        """Run one more token → its logits [1, V], valid until the next call."""
        ...

    def choose_by(self, options: Choosing, ends: Sequence[int] = (), room: int = 0) -> None:
        """Let ``next`` choose by these. It may run ahead by what comes within a few milliseconds: of ``room`` tokens
        that will be wanted at most, and not behind one of ``ends``."""
        ...

    def next(self, token: int) -> int:
        """Run one more token and return the one that is chosen behind it, or ``NO_TOKEN``; after ``choose_by``."""
        ...

    @property
    def logits(self) -> F32:
        """The logits [1, V] of the last token, valid until the next call; with ``room`` for none that run ahead."""
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

    def draft(self, drafting: Drafting) -> None:
        """Feed tokens before they are final, as ``drafting`` says; the tokens stay the same."""
        ...

    def text(self, ids: npt.ArrayLike) -> None:
        """Look drafts up in the text ids [S], of which the first tokens were run."""
        ...

    def drafts(self) -> DraftReport:
        """Return what became of drafts, and what was learnt of them. UsageError where there are none."""
        ...
