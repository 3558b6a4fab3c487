"""Runs a text through a model and its quantized twins in step, and compares their states after every depth.

A state here is all that a depth hands to the next one, carries too: h [D] of a token. With h_r in float and h_r + E_r
quantized, and B and Q a depth of the float and of the quantized model, a depth's error has three parts, which add up to
it exactly: E_r = I + C + M.

- I = Q(h) − B(h), *injected*: what the depth's own rounding adds to states without an error.
- C = B(h + E) − B(h), *carried*: what a depth without rounding makes of the error it is given.
- M, *mixed*: the rest, rounding of the error and error of the rounding; of second order.

So e_r ≤ L_r e_{r−1} + q_r + m_r, with e, q, m the norms of E, I and M relative to that of h_r, and L_r, the
*amplification*, that of C relative to e_{r−1}: by how much a depth stretches errors in the direction that they have.
Both hybrids run on K/V of their own, so that K/V of earlier tokens are of the same two kinds as the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...runtime.engines.backend import F32, I64, Backend, Lanes
from ...runtime.errors import UsageError
from ...runtime.model.program import Program
from .distances import F64, cosines, divergences, norms, scale_of

Told = Callable[[int], None]
"""Called with the tokens that are behind."""

CHUNK = 128
"""Tokens of a call."""
PROFILE = 16
"""Read-outs at most: each one with K/V of its own takes memory, and a head may be a large part of a depth."""
PERCENTILE = 95


@dataclass(frozen=True)
class DepthDrift:
    """A quantized model after ``depth`` depths, 0: before the first one.

    Over the tokens: ``error`` and ``error_95``, median and 95th percentile of e; ``cosine`` of the two states,
    ``injected``, ``carried``, ``mixed``, ``amplification`` and ``bound`` are medians, too. ``bound``: e as it follows
    from the depths before it, L_r · bound_{r−1} + q_r + m_r. ``growth``: ``error`` ÷ that of the depth before. ``kl``:
    mean of KL(float, quantized) of the read-out, in nats; ``flipped``: share of tokens whose likeliest next token is
    another one; both None where the state was not read out. What has no depth before it is None.
    """

    depth: int
    error: float
    error_95: float
    cosine: float
    bound: float
    injected: float | None = None
    carried: float | None = None
    mixed: float | None = None
    amplification: float | None = None
    growth: float | None = None
    kl: float | None = None
    flipped: float | None = None


@dataclass(frozen=True)
class Drift:
    """A quantized model, depth by depth; ``settles_at``: see ``settled``."""

    name: str
    depths: tuple[DepthDrift, ...]
    settles_at: float | None


def check_twins(program: Program, others: Sequence[tuple[str, Program]]) -> None:
    """Raise UsageError where a model of ``others``, by name, has other depths, states or tokens than ``program``."""
    wanted = _sizes(program)
    for name, other in others:
        for what, size, theirs in zip(
            ("depths", "numbers a state", "tokens"), wanted, _sizes(other), strict=True
        ):
            if size != theirs:
                raise UsageError(
                    f"{name} has {theirs} {what} and the float model {size}; give two exports of one checkpoint"
                )


def _sizes(program: Program) -> tuple[int, int, int]:
    return program.depths, sum(carry.width for carry in program.loop.carries), program.vocab_size


def read_depths(depths: int, trained: int) -> list[int]:
    """Return the depths, 1 … ``depths``, whose states are read out: all of a few, else 1, 2, 3, 4, 6, 8, 12, 16 …"""
    if depths <= PROFILE:
        return list(range(1, depths + 1))
    steps = {1, depths, min(trained, depths)}
    for power in range(depths.bit_length()):
        steps |= {1 << power, 3 << power}
    return sorted(step for step in steps if step <= depths)


def measure(
    exact: Backend,
    quantized: Sequence[tuple[str, Backend]],
    ids: I64,
    window: int,
    reads: Sequence[int],
    told: Told = lambda tokens: None,
) -> list[Drift]:
    """Return the drift of each of ``quantized``, by name, beside ``exact`` on ids [S], in windows of ``window`` tokens.

    ``reads``: after which depths, 1 … R, states are read out. Every token runs every depth, whatever routers say.
    UsageError where the models are not twins (``check_twins``).
    """
    program = exact.program
    check_twins(program, [(name, backend.program) for name, backend in quantized])
    window = min(window, len(ids))
    base, base_heads = _Track(exact, window), _heads(exact, reads, window)
    pairs = [
        _Pair(
            name,
            _Track(other, window),
            _Track(other, window),
            _Track(exact, window),
            _heads(other, reads, window),
        )
        for name, other in quantized
    ]
    for start in range(0, len(ids), window):
        part, at = ids[start : start + window], 0
        while at < len(part):
            # Where prompts see themselves the first token goes alone, as when a text is scored.
            chunk = part[at : at + (1 if program.prefix_lm and not at else CHUNK)]
            state = base.enter(chunk, at)
            for pair in pairs:
                pair.enter(chunk, at, state)
            for depth in range(program.depths):
                after = base.block(depth, state, at)
                for pair in pairs:
                    pair.block(depth, state, after, at)
                if (head := base_heads.get(depth)) is not None:
                    logits = head.read(depth, after, at)
                    for pair in pairs:
                        pair.read(depth, logits, at)
                state = after
            at += len(chunk)
            told(start + at)
    return [pair.result(program.depths) for pair in pairs]


def settled(depths: Sequence[DepthDrift]) -> float | None:
    """Return q ÷ (1 − L) of the last depth: the e at which a depth adds as much as it takes away, if it goes on so.

    None where L is 1 or more (the error then grows as long as the loop runs), and with fewer than two depths.
    """
    last = depths[-1]
    if last.amplification is None or last.injected is None or last.amplification >= 1 or len(depths) < 3:
        return None
    return last.injected / (1 - last.amplification)


class _Track:
    """One sequence on a backend, to which states are given depth by depth, with K/V of its own."""

    def __init__(self, backend: Backend, capacity: int, slots: int | None = None) -> None:
        self._backend, self._cache = backend, backend.new_cache(1, capacity, slots)
        self._cache.reserve(capacity)

    def enter(self, ids: I64, at: int) -> F32:
        """The states [n, D] of ids [n] before depth 0."""
        lanes = self._lanes("prologue", 0, at, len(ids))
        state: F32 = self._backend.prologue(ids[None], lanes, self._cache)[0].copy()
        return state

    def block(self, depth: int, state: F32, at: int) -> F32:
        """The states [n, D] after ``depth``, of those before it."""
        lanes = self._lanes("block", depth, at, len(state))
        after: F32 = self._backend.block(state[None], lanes, self._cache)[0].copy()
        return after

    def read(self, depth: int, state: F32, at: int) -> F32:
        """The logits [n, V] of states [n, D] after ``depth``."""
        lanes, rows = self._lanes("epilogue", depth, at, len(state)), np.arange(len(state))
        logits: F32 = self._backend.epilogue(state[None], rows, lanes, self._cache).copy()
        return logits

    def _lanes(self, stage: str, depth: int, at: int, tokens: int) -> Lanes:
        return Lanes.single(depth, at, tokens, self._cache.slot(stage, 0, depth))


def _heads(backend: Backend, reads: Sequence[int], capacity: int) -> dict[int, _Track]:
    """A track for the epilogue after each of ``reads``, by the depth before it: every read-out has its own K/V."""
    if not backend.program.caches("epilogue"):
        track = _Track(backend, capacity, 1)
        return {after - 1: track for after in reads}
    return {after - 1: _Track(backend, capacity, 1) for after in reads}


@dataclass
class _Pair:
    """A quantized model beside the float one: its own run, its depths on float states, float depths on its states."""

    name: str
    own: _Track
    once: _Track
    floats: _Track
    heads: dict[int, _Track]
    state: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    error: F64 = field(default_factory=lambda: np.empty(0))
    bound: F64 = field(default_factory=lambda: np.empty(0))
    seen: dict[tuple[int, str], list[F64]] = field(default_factory=dict)

    def enter(self, ids: I64, at: int, state: F32) -> None:
        """Take a chunk in; ``state``: the float one's."""
        self.state = self.own.enter(ids, at)
        self.error = self.bound = norms(self.state - state) / scale_of(state)
        self._note(0, error=self.error, bound=self.bound, cosine=cosines(self.state, state))

    def block(self, depth: int, before: F32, after: F32, at: int) -> None:
        """Go one depth deeper; ``before`` and ``after``: the float one's states."""
        once = self.once.block(depth, before, at)
        floats = self.floats.block(depth, self.state, at)
        own = self.own.block(depth, self.state, at)
        scale = scale_of(after)
        injected, carried = norms(once - after) / scale, norms(floats - after) / scale
        mixed = norms(own.astype(np.float64) - floats - once + after) / scale
        # A token without an error of its own may still see those of others: nothing to stretch, all of it is new.
        clean = self.error == 0
        stretch = carried / np.where(clean, 1, self.error)
        self.bound = np.where(clean, carried, stretch * self.bound) + injected + mixed
        self.state, self.error = own, norms(own - after) / scale
        self._note(
            depth + 1,
            error=self.error,
            bound=self.bound,
            cosine=cosines(own, after),
            injected=injected,
            carried=carried,
            mixed=mixed,
            amplification=stretch[~clean],
        )

    def read(self, depth: int, logits: F32, at: int) -> None:
        """Read the state out beside ``logits`` [n, V], the float one's."""
        found = self.heads[depth].read(depth, self.state, at)
        flipped = found.argmax(axis=1) != logits.argmax(axis=1)
        self._note(depth + 1, kl=divergences(logits, found), flipped=flipped.astype(np.float64))

    def result(self, depths: int) -> Drift:
        """Everything so far."""
        found: list[DepthDrift] = []
        for depth in range(depths + 1):
            values = {
                name: _SUMMARIES.get(name, _median)(np.concatenate(parts))
                for (at, name), parts in self.seen.items()
                if at == depth
            }
            errors = np.concatenate(self.seen[depth, "error"])
            values["error_95"] = float(np.percentile(errors, PERCENTILE))
            if found and found[-1].error:
                values["growth"] = values["error"] / found[-1].error
            found.append(DepthDrift(depth, **values))
        return Drift(self.name, tuple(found), settled(found))

    def _note(self, depth: int, **values: F64) -> None:
        for name, value in values.items():
            self.seen.setdefault((depth, name), []).append(value)


def _median(values: F64) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _mean(values: F64) -> float:
    return float(values.mean())


_SUMMARIES: dict[str, Callable[[F64], float]] = {"kl": _mean, "flipped": _mean}
"""What is made of a measure's tokens, where that is not the median."""
