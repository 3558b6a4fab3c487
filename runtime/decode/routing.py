"""Mixture-of-Recursions routers (arXiv 2507.10524, section 2.2): which tokens run which depth, and their gates.

``threshold`` is the rule for generation: expert choice goes on where the trained score says so by itself, token
choice takes the likeliest depth. ``chunk-topk`` is the authors' training forward: the best share of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import erf

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..model.program import Program, Routing

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
RULES = ("router", "router:θ", "chunk-topk", "never", "depth:N")
RIDERS = 5
"""Rows between two chosen ones that ride along: up to here they cost less than one call more (demo model, int4: a call
of one row takes 0.15 ms, each row more 0.02 ms)."""


@dataclass(frozen=True)
class RoutingRule:
    """Who goes on. ``threshold``: of expert choice, None the trained one. ``topk``: the best share of the chunk.

    ``everyone``: no routing, every token runs ``stop`` depths.
    """

    name: str
    stop: int
    threshold: float | None = None
    topk: bool = False
    everyone: bool = False


def parse_routing(text: str, program: Program) -> RoutingRule:
    """The routing rule that ``text`` names; UsageError names those that a routed model takes."""
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

    def score(self, head: str, depth: int, x: F32) -> F32:
        """x [N, D] → z [N] of one depth's head."""
        x = x / np.float32(self.routing.temperature)
        hidden = self.heads.get(f"{head}.hidden")
        if hidden is not None:
            x = _gelu(x @ hidden[min(depth, len(hidden) - 1)].T)
        z: F32 = x @ self.heads[f"{head}.weight"][depth]
        return z

    def expert(self, rule: RoutingRule, depth: int, x: F32, chunk: int) -> tuple[I64, F32]:
        """Expert choice among the tokens x [N, D] that ran the depth before: rows [k] that go on, gates [k].

        ``chunk``: tokens that came in together, of which ``chunk-topk`` takes its share.
        """
        routing = self.routing
        p = _squash(self.score("router", depth, x), routing.squash)
        if rule.everyone or (not rule.topk and routing.capacity[depth] >= 1):
            rows = np.arange(len(x))
        elif rule.topk:
            kept = max(1, int(routing.capacity[depth] * chunk))
            rows = np.sort(np.argsort(-p, kind="stable")[:kept])
        else:
            judge = _squash(self.score("auxiliary", depth, x), "sigmoid") if routing.auxiliary else p
            # Half way is where the trained score stops saying yes: 0.5 of a sigmoid, 0 of a tanh or a raw score.
            middle = 0.5 if routing.auxiliary or routing.squash == "sigmoid" else 0.0
            rows = np.flatnonzero(judge >= (middle if rule.threshold is None else rule.threshold))
        gates = np.float32(routing.alpha) * p[rows] if routing.gated else np.ones(len(rows), np.float32)
        return rows, gates.astype(np.float32, copy=False)

    def token(self, rule: RoutingRule, x: F32) -> tuple[I64, F32]:
        """Token choice from the loop's input x [N, D]: the last depth [N] of each token, and its gate [N]."""
        z = np.stack([self.score("router", d, x) for d in range(self.depths)], axis=-1)
        if self.routing.squash == "softmax":
            e = np.exp(z - z.max(axis=-1, keepdims=True))
            p = e / e.sum(axis=-1, keepdims=True)
        else:
            p = _squash(z, self.routing.squash)
        choice = np.argmax(p + self.heads["router.bias"], axis=-1)
        choice = np.full_like(choice, self.depths - 1) if rule.everyone else np.minimum(choice, rule.stop - 1)
        gates = np.take_along_axis(p, choice[:, None], axis=-1)[:, 0] * np.float32(self.routing.alpha)
        return choice, gates if self.routing.gated else np.ones_like(gates)


def shared_calls(depth: int, rows: I64, size: int) -> Iterator[tuple[slice, slice]]:
    """The calls that bring the chosen ``rows`` [k] of a chunk of ``size`` tokens through ``depth``, all of one K and V.

    → (tokens of the chunk that are in the call, which of ``rows`` they have the results for); the others' are dropped.

    The authors' forward runs every token through every depth and keeps the results of the chosen ones. Depth 0 has to,
    whomever the router chose: it makes the K and V of all positions. Deeper, a token has its own query only, so those
    that were not chosen can be left out, but the operator takes neighbours: a call for each run of them. (Without its
    cache the authors' code shares nothing, even if told to; it trains with one, so sharing is what is meant.)
    """
    if depth == 0:
        yield slice(0, size), slice(0, len(rows))
    elif len(rows):
        ends = (np.flatnonzero(np.diff(rows) > RIDERS + 1) + 1).tolist()
        for start, stop in pairwise((0, *ends, len(rows))):
            yield slice(int(rows[start]), int(rows[stop - 1]) + 1), slice(start, stop)


def _squash(z: F32, kind: str) -> F32:
    """z → σ(z), tanh(z) or z."""
    if kind == "sigmoid":
        p: F32 = np.tanh(z * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
        return p
    return np.tanh(z) if kind == "tanh" else z


def _gelu(x: F32) -> F32:
    """Exact GELU."""
    cumulative = np.vectorize(erf, otypes=[np.float32])(x / np.sqrt(np.float32(2)))
    result: F32 = x * (1 + cumulative) * np.float32(0.5)
    return result
