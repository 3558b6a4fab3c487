"""Mixture-of-Recursions routers (arXiv 2507.10524, section 2.2): which tokens run which depth, and their gates.

``threshold`` is the rule for generation: expert choice goes on where the trained score says so by itself, token
choice takes the likeliest depth. ``chunk-topk`` is the authors' training forward: the best share of a chunk.

Scores are computed in float64 and rounded at the end, as in ``exits.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import ClassVar

import numpy as np

from ..engines.backend import F32, I64
from ..errors import UsageError
from ..model.erf import erf
from ..model.program import Program, Routing
from ..timing import LoopClock
from .exits import F64, sigmoid

RULES = ("router", "router:θ", "chunk-topk", "never", "depth:N")


@dataclass(frozen=True)
class RoutingRule:
    """Which tokens go on. ``threshold``: of expert choice, None the trained one. ``topk``: the best share of the chunk.

    ``everyone``: no routing, every token runs ``stop`` depths.
    """

    name: str
    stop: int
    threshold: float | None = None
    topk: bool = False
    everyone: bool = False

    reads_logits: ClassVar[bool] = False
    """A router reads states."""
    exits_early: ClassVar[bool] = True
    """A token may leave before the last depth."""
    token_by_token: ClassVar[bool] = False
    """A text goes through in chunks: the router decides for the tokens of a prompt as for generated ones."""

    @property
    def whole_text(self) -> bool:
        """Whether all tokens of a text have to be seen at once."""
        return self.topk


def parse_routing(text: str, program: Program) -> RoutingRule:
    """Return the routing rule that ``text`` names; UsageError names those that a routed model takes."""
    assert program.routing is not None
    name, _, rest = text.partition(":")
    if name == "never" and not rest:
        return RoutingRule(name, program.depths, everyone=True)
    if name == "depth" and rest.isascii() and rest.isdigit() and 1 <= int(rest) <= program.depths:
        return RoutingRule(name, int(rest))
    if name == "router" and not rest:
        return RoutingRule(name, program.depths)
    if text == "chunk-topk" and program.routing.kind == "expert":
        return RoutingRule(text, program.depths, topk=True)
    if name == "router" and program.routing.kind == "expert":
        low = -1.0 if program.routing.squash == "tanh" else 0.0
        try:
            value = float(rest)
        except ValueError:
            value = float("nan")
        if not low <= value <= 1:
            raise UsageError(f"exit rule {text!r}: the router's threshold lies between {low:g} and 1")
        return RoutingRule(name, program.depths, threshold=value)
    raise UsageError(
        f"exit rule {text!r}: a router decides in this model ({program.routing.kind} choice, {program.depths} depths); "
        f"wanted one of {', '.join(RULES)}"
    )


class Router:
    """Scores of N tokens, and what follows from them."""

    def __init__(self, program: Program, heads: Mapping[str, F32]) -> None:
        assert program.routing is not None
        self.routing: Routing = program.routing
        self.depths = program.depths
        self.heads = heads

    def score(self, head: str, depth: int, x: F32) -> F64:
        """Return the scores z [N] of x [N, D] by one depth's head."""
        y = x.astype(np.float64) / np.float32(self.routing.temperature)
        hidden = self.heads.get(f"{head}.hidden")
        if hidden is not None:
            y = _gelu(y @ hidden[min(depth, len(hidden) - 1)].T.astype(np.float64))
        z: F64 = y @ self.heads[f"{head}.weight"][depth].astype(np.float64)
        return z

    def expert(self, rule: RoutingRule, depth: int, x: F32, chunk: int) -> tuple[I64, F32]:
        """Return the rows [k] of the tokens x [N, D], which ran the depth before, that expert choice sends on; gates
        [k].

        ``chunk``: tokens that came in together, of which ``chunk-topk`` takes its share.
        """
        routing = self.routing
        p = _squash(self.score("router", depth, x), routing.squash).astype(np.float32)
        if rule.everyone or (not rule.topk and routing.capacity[depth] >= 1):
            rows = np.arange(len(x))
        elif rule.topk:
            kept = max(1, int(routing.capacity[depth] * chunk))
            rows = np.sort(np.argsort(-p, kind="stable")[:kept])
        else:
            judge = p
            if routing.auxiliary:
                judge = _squash(self.score("auxiliary", depth, x), "sigmoid").astype(np.float32)
            rows = np.flatnonzero(judge >= (half_way(routing) if rule.threshold is None else rule.threshold))
        gates = np.float32(routing.alpha) * p[rows] if routing.gated else np.ones(len(rows), np.float32)
        return rows, gates.astype(np.float32, copy=False)

    def token(self, rule: RoutingRule, x: F32) -> tuple[I64, F32]:
        """Return the last depth [N] that token choice gives each token of the loop's input x [N, D], and its gate
        [N]."""
        z = np.stack([self.score("router", d, x) for d in range(self.depths)], axis=-1)
        if self.routing.squash == "softmax":
            e = np.exp(z - z.max(axis=-1, keepdims=True))
            p = (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)
        else:
            p = _squash(z, self.routing.squash).astype(np.float32)
        choice = np.argmax(p + self.heads["router.bias"], axis=-1)
        choice = np.full_like(choice, self.depths - 1) if rule.everyone else np.minimum(choice, rule.stop - 1)
        gates = np.take_along_axis(p, choice[:, None], axis=-1)[:, 0] * np.float32(self.routing.alpha)
        return choice, gates if self.routing.gated else np.ones_like(gates)

    def chunk(self, rule: RoutingRule, x: F32, clock: LoopClock) -> ExpertChunk | TokenChunk:
        """Return the tokens whose states x [N, D] enter the loop together; x is written to. ``clock`` counts
        decisions."""
        return (ExpertChunk if self.routing.kind == "expert" else TokenChunk)(self, rule, x, clock)


class ExpertChunk:
    """N tokens on their way through the depths under expert choice: at each depth some of those still there go on."""

    def __init__(self, router: Router, rule: RoutingRule, x: F32, clock: LoopClock) -> None:
        self._router, self._rule, self._clock = router, rule, clock
        self._rows = np.arange(len(x))
        self._gates = np.empty(0, np.float32)
        self.state = x
        """[N, D], what the next depth sees, and finally the loop's output."""
        self.ran = np.zeros(len(x), np.int64)
        """[N], depths run so far."""

    def choose(self, depth: int) -> I64:
        """Return the rows [k] that run ``depth``."""
        start = perf_counter_ns()
        state = self.state
        chosen, self._gates = self._router.expert(self._rule, depth, state[self._rows], len(state))
        self._rows = self._rows[chosen]
        self._clock.decided(start)
        return self._rows

    def update(self, out: F32) -> None:
        """Take in ``out`` [k, D], which the depth made of the chosen rows."""
        self.state[self._rows] += self._gates[:, None] * out
        self.ran[self._rows] += 1

    def output(self) -> F32:
        """Return the loop's output [N, D]."""
        return self.state


class TokenChunk:
    """N tokens on their way through the depths under token choice: each knows from the start how deep it goes."""

    def __init__(self, router: Router, rule: RoutingRule, x: F32, clock: LoopClock) -> None:
        start = perf_counter_ns()
        self._choice, self._gates = router.token(rule, x)
        clock.decided(start)
        self._entered = x
        self._rows = np.empty(0, np.int64)
        self.state = x.copy()
        """[N, D], what the next depth sees."""
        self.ran: I64 = self._choice + 1
        """[N], depths that each runs."""

    def choose(self, depth: int) -> I64:
        """Return the rows [k] that run ``depth``."""
        self._rows = np.flatnonzero(self._choice >= depth)
        return self._rows

    def update(self, out: F32) -> None:
        """Take in ``out`` [k, D], which the depth made of the chosen rows."""
        self.state[self._rows] = out

    def output(self) -> F32:
        """Return the loop's output [N, D]: its input, and the gated state of each token's last depth on top."""
        self._entered += self._gates[:, None] * self.state
        return self._entered


def half_way(routing: Routing) -> float:
    """Return where the trained score of expert choice stops saying yes: 0.5 of a sigmoid, 0 of a tanh or a raw one."""
    return 0.5 if routing.auxiliary or routing.squash == "sigmoid" else 0.0


def _squash(z: F64, kind: str) -> F64:
    """Return σ(z), tanh(z) or z."""
    if kind == "sigmoid":
        return sigmoid(z)
    return np.tanh(z) if kind == "tanh" else z


def _gelu(x: F64) -> F64:
    """Return the exact GELU of x."""
    result: F64 = x * (1 + erf(x / np.sqrt(2.0))) * 0.5
    return result
