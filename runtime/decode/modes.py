"""Which ways to decode go together: one table of what does not, and why.

A way is a model, an exit rule or its router, what becomes of skipped K/V, a KV layout, a driver and an engine.
Every row of ``REFUSED`` is a condition and a reason. The first that applies is the message for the user; what no row
refuses gives the tokens of the reference engine. docs/modes.md shows what is left for each trait of a model;
tests/mode_cells.py tries every cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..engines.capabilities import Capabilities
from ..errors import UsageError
from ..model.program import Program
from .exits import ExitRule
from .kv_layout import KV_LAYOUTS, LAST_DEPTHS
from .policy import Policy
from .skipped_kv import SKIPPED_KV

SEQUENTIAL, PIPELINED, MANY = "sequential", "pipelined", "many users"
DECODE = (SEQUENTIAL, PIPELINED)
"""The drivers of one sequence, as ``--decode`` names them; ``MANY`` is that of the batch server."""


@dataclass(frozen=True)
class Mode:
    """One way to decode. ``can``: what the engine ``engine`` says of itself; None: whatever the engine."""

    program: Program
    policy: Policy
    driver: str = SEQUENTIAL
    engine: str = ""
    can: Capabilities | None = None

    @property
    def kv(self) -> str:
        """The KV layout."""
        return self.policy.kv

    @property
    def skipped_kv(self) -> str:
        """What becomes of skipped K/V."""
        return self.policy.skipped_kv

    @property
    def keeps_last(self) -> bool:
        """Whether each depth writes its slot anew, so that the last ones' K/V stay."""
        return self.kv in LAST_DEPTHS.values()

    @property
    def own_kv(self) -> str:
        """The KV layout that the model was trained for."""
        return "shared" if self.program.shares_kv else "per-depth"

    @property
    def depths(self) -> int:
        """How often the loop runs."""
        return self.program.depths

    @property
    def window(self) -> int | None:
        """The sliding window, in tokens."""
        return self.program.window

    @property
    def routed(self) -> bool:
        """Whether a router of the model's own decides which tokens go on."""
        return self.program.routing is not None

    @property
    def leaves(self) -> bool:
        """Whether an exit rule may let a token go before the last depth."""
        rule = self.policy.rule
        return isinstance(rule, ExitRule) and (rule.measure is not None or rule.stop < self.depths)

    @property
    def varies(self) -> bool:
        """Whether one token may run more depths than another."""
        rule = self.policy.rule
        return not isinstance(rule, ExitRule) or rule.measure is not None

    @property
    def reads_logits(self) -> bool:
        """Whether the exit rule reads logits."""
        return self.policy.rule.reads_logits

    @property
    def by_chunk(self) -> bool:
        """Whether the router takes its share of a whole chunk."""
        return self.policy.rule.whole_text

    def lacks(self, capability: str) -> bool:
        """Return whether the engine is known not to have that ``capability``."""
        return self.can is not None and not getattr(self.can, capability)


CHOICES = {
    "kv": "KV layout {m.kv!r}",
    "skipped_kv": "policy {m.skipped_kv!r} for skipped K/V",
    "exit": "exit rule {m.policy.exit!r}",
    "decode": "decode {m.driver!r}",
    "engine": "engine {m.engine}",
}
"""How a refusal begins, by the choice that it is of."""


@dataclass(frozen=True)
class Refusal:
    """Refuses the value of ``choice`` when it ``applies``, which ``when`` says in words; what to do ``instead``."""

    choice: str
    when: str
    applies: Callable[[Mode], bool]
    why: str
    instead: str

    def line(self, mode: Mode) -> str:
        """Return the message for the user."""
        return f"{CHOICES[self.choice]}: {self.why}; {self.instead}".format(m=mode)


REFUSED: tuple[Refusal, ...] = (
    Refusal(
        "kv",
        "shared or last, with one depth",
        lambda m: m.kv != m.own_kv and m.depths == 1,
        "the model has one depth, and nothing else could use its K/V",
        "leave it out",
    ),
    Refusal(
        "kv",
        "shared, where depths have K/V of their own",
        lambda m: m.kv == "shared" != m.own_kv,
        "the depths of this model have K/V of their own",
        "leave it out, or export the model with --kv shared",
    ),
    Refusal(
        "kv",
        "per-depth, where depths share K/V",
        lambda m: m.kv == "per-depth" != m.own_kv,
        "the depths of this model share K/V",
        "leave it out, or export the model with --kv per-depth",
    ),
    Refusal(
        "kv",
        "last, where depths share K/V",
        lambda m: m.keeps_last and m.own_kv == "shared",
        "the depths of this model share the K/V of the first one",
        "leave it out",
    ),
    Refusal(
        "kv",
        "last-N, with no more than N depths",
        lambda m: m.keeps_last and m.depths <= (KV_LAYOUTS[m.kv].slots or 0),
        "the model has {m.depths} depths, each of which has a slot of its own then",
        "leave it out, or choose last",
    ),
    Refusal(
        "kv",
        "last, with a router",
        lambda m: m.keeps_last and m.routed,
        "a router was trained with a slot a depth, which holds those that ran it",
        "leave it out",
    ),
    Refusal(
        "kv",
        "last, with a sliding window",
        lambda m: m.keeps_last and m.window is not None,
        "rows of a window of {m.window} tokens move when they are written, and every depth would write them",
        "leave it out",
    ),
    Refusal(
        "kv",
        "last, where a depth keeps the row of the token before",
        lambda m: m.keeps_last and m.program.kept_rows > 0,
        "each depth keeps a row of the token before, and a slot has room for one",
        "leave it out",
    ),
    Refusal(
        "kv",
        "last, on an engine that places rows itself",
        lambda m: m.keeps_last and m.lacks("free_rows"),
        "engine {m.engine} gives each depth a slot of its own",
        "leave it out, or choose another engine",
    ),
    Refusal(
        "skipped_kv",
        "any but shared, where depths share slots",
        lambda m: m.kv != "per-depth" and m.skipped_kv != "shared",
        "with {m.kv} K/V depths share slots, so that none are missing",
        "leave it out",
    ),
    Refusal(
        "skipped_kv",
        "any but skip, with a router",
        lambda m: m.kv == "per-depth" and m.routed and m.skipped_kv != "skip",
        "the model's router was trained with depths that do not see those that left",
        "leave it out",
    ),
    Refusal(
        "skipped_kv",
        "shared, with a slot a depth",
        lambda m: m.kv == "per-depth" and m.skipped_kv == "shared",
        "each depth has K/V of its own, so that those of skipped depths are missing",
        "choose exact, propagate, latest or skip",
    ),
    Refusal(
        "skipped_kv",
        "propagate or latest, with one depth",
        lambda m: m.skipped_kv in ("propagate", "latest") and m.depths == 1,
        "the model has one depth, which no token skips",
        "leave it out",
    ),
    Refusal(
        "skipped_kv",
        "propagate, where a depth keeps the row of the token before",
        lambda m: m.skipped_kv == "propagate" and m.program.kept_rows > 0,
        "a depth keeps a row of the token before, and a token that skipped it has none",
        "choose exact or skip",
    ),
    Refusal(
        "skipped_kv",
        "propagate, with attention matrices for each depth",
        lambda m: m.skipped_kv == "propagate" and m.program.own_matrices,
        "K/V are filled in with matrices that all depths share, and this model has some for each depth",
        "choose exact, latest or skip",
    ),
    Refusal(
        "skipped_kv",
        "propagate, where the loop keeps no K/V",
        lambda m: m.skipped_kv == "propagate" and not m.program.caches("block"),
        "the loop of this model keeps no K/V",
        "choose exact or skip",
    ),
    Refusal(
        "skipped_kv",
        "propagate or latest, with a sliding window",
        lambda m: m.skipped_kv in ("propagate", "latest") and m.window is not None,
        "rows that are filled in later have to stay where they are, and a window of {m.window} tokens moves them",
        "choose exact or skip",
    ),
    Refusal(
        "skipped_kv",
        "latest under an exit rule, on an engine that keeps rows to itself",
        lambda m: SKIPPED_KV[m.skipped_kv].copies_rows and m.leaves and m.lacks("host_rows"),
        "it copies rows, and engine {m.engine} keeps them to itself",
        "choose exact or propagate, or another engine",
    ),
    Refusal(
        "skipped_kv",
        "skip under a rule of measures or a router, on an engine that places rows itself",
        lambda m: m.skipped_kv == "skip" and m.varies and m.lacks("free_rows"),
        "a token's row is then not its position, and engine {m.engine} has no others",
        "choose exact or propagate, or another engine",
    ),
    Refusal(
        "decode",
        "pipelined, with one depth",
        lambda m: m.driver == PIPELINED and m.depths == 1,
        "the model has one depth, so there is nothing to pipeline",
        "use sequential",
    ),
    Refusal(
        "decode",
        "pipelined, KV layout last",
        lambda m: m.driver == PIPELINED and m.keeps_last,
        "with fewer KV slots than depths a token has to finish before the next one begins",
        "use sequential",
    ),
    Refusal(
        "decode",
        "pipelined, exit rule chunk-topk",
        lambda m: m.driver == PIPELINED and m.by_chunk,
        "exit rule {m.policy.exit!r} has to see a whole text at once",
        "use sequential",
    ),
    Refusal(
        "exit",
        "chunk-topk, for many users",
        lambda m: m.driver == MANY and m.by_chunk,
        "it takes its share of a whole prompt, and many users' prompts go in by chunks",
        "use router",
    ),
    Refusal(
        "engine",
        "many users, on an engine that takes one lane at a time",
        lambda m: m.driver == MANY and m.lacks("packed"),
        "it takes one lane at a time, and many users need packed lanes",
        "use engine onnx",
    ),
)
"""The first row that applies refuses a mode."""


def refusal(mode: Mode) -> str | None:
    """Return why ``mode`` is refused, in one line, or None."""
    return next((row.line(mode) for row in REFUSED if row.applies(mode)), None)


def check_mode(mode: Mode) -> None:
    """Raise UsageError with the reason of the first row that refuses ``mode``, and for a driver that there is not."""
    if mode.driver not in (*DECODE, MANY):
        raise UsageError(f"decode {mode.driver!r}; known: {', '.join(DECODE)}")
    if reason := refusal(mode):
        raise UsageError(reason)
