"""Decoding written plainly: one token after the other, nothing put off, nothing run together.

What every driver on every engine has to give. It uses the reference engine's ops on slots of its own, and nothing of
``runtime/decode`` but the sampler: exit rules, routers, skipped K and V and KV layouts are here a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import erf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeloop.runtime.decode.sampling import Sampler, SamplingOptions, noise
from edgeloop.runtime.engines.reference.lane import Lane, Slot
from edgeloop.runtime.engines.reference.ops import compute
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.transform import at_depth, keys_values

F32 = npt.NDArray[np.float32]
Score = Callable[["Seen", Mapping[str, F32]], float]


@dataclass(frozen=True)
class Seen:
    """What an exit rule sees of a token: the states [D] from the loop's input on, and the logits [V] of each depth."""

    states: Sequence[F32]
    logits: Sequence[F32]


def softmax(x: F32) -> F32:
    e = np.exp(x - x.max())
    p: F32 = e / e.sum()
    return p


def sigmoid(x: F32) -> F32:
    y: F32 = 1 / (1 + np.exp(-x))
    return y


def _kl(seen: Seen, heads: Mapping[str, F32]) -> float:
    if len(seen.logits) < 2:
        return np.inf
    before, now = (softmax(x) for x in seen.logits[-2:])
    return float((before * np.log(before / now)).sum())


def _entropy(logits: F32) -> float:
    return float(-(softmax(logits) * np.log(softmax(logits))).sum())


def _entropy_diff(seen: Seen, heads: Mapping[str, F32]) -> float:
    return abs(_entropy(seen.logits[-1]) - _entropy(seen.logits[-2])) if len(seen.logits) > 1 else np.inf


def _stable(seen: Seen, heads: Mapping[str, F32]) -> float:
    likeliest = [int(x.argmax()) for x in seen.logits]
    return float(next((n for n, x in enumerate(likeliest[-2::-1]) if x != likeliest[-1]), len(likeliest) - 1))


def _gate(seen: Seen, heads: Mapping[str, F32]) -> float:
    stops = [sigmoid(x @ heads["gate.weight"] + heads["gate.bias"]) for x in seen.states[1:]]
    return float((1 - np.prod([1 - p for p in stops])).item())


def _probe(seen: Seen, heads: Mapping[str, F32]) -> float:
    x, depth = seen.states[-1], len(seen.states) - 2
    z = heads["probe.weight"][depth] @ x / np.sqrt((x * x).mean() + 1e-6)
    return float(sigmoid(z + heads["probe.bias"][depth]))


SCORES: dict[str, tuple[Score, bool]] = {
    "confidence": (lambda s, h: float(softmax(s.logits[-1]).max()), True),
    "margin": (lambda s, h: float(np.subtract(*np.sort(softmax(s.logits[-1]))[:-3:-1])), True),
    "entropy": (lambda s, h: _entropy(s.logits[-1]), False),
    "kl": (_kl, False),
    "entropy-diff": (_entropy_diff, False),
    "stable": (_stable, True),
    "latent": (
        lambda s, h: float(np.linalg.norm(s.states[-1] - s.states[-2]) / np.linalg.norm(s.states[-1])),
        False,
    ),
    "gate": (_gate, True),
    "probe": (_probe, True),
}
"""By the rule's name: the score, and whether a token leaves when it is above its threshold."""
READS_LOGITS = ("confidence", "margin", "entropy", "kl", "entropy-diff", "stable")


class Token(NamedTuple):
    """A token, the depths that its logits are after, and how clear the decisions were that it depends on."""

    id: int
    depth: int
    margin: float


@dataclass
class Plain:
    """One sequence of a model: ``exit`` as on the command line, ``kv`` and ``skipped_kv`` by their names.

    ``margin``: how near any score of the last token was to what it was compared with: an engine that rounds otherwise
    by less has to decide the same.
    """

    program: Program
    tensors: Mapping[str, npt.NDArray[np.generic]]
    heads: Mapping[str, F32]
    exit: str = "never"
    kv: str = "per-depth"
    skipped_kv: str = "exact"
    margin: float = np.inf

    def __post_init__(self) -> None:
        program = self.program
        self.weights = StoredWeights(program.weights, self.tensors, 0)
        self.blocks = [at_depth(program, depth) for depth in range(program.depths)]
        self.name, _, rest = self.exit.partition(":")
        self.numbers = [float(x) for x in rest.split(",")] if rest else []
        self.slots: dict[tuple[str, int], list[Slot]] = {}
        self.kept_rows: dict[tuple[str, int], dict[int, F32]] = {}
        self.rows = [0] * program.depths  # of each depth's slot, where not everybody has one
        self.left: list[F32] = []  # by position: the state that a token had when it left
        self.deep: list[F32] = []  # and that after all depths
        # Tokens whose deep states the layers after the loop may see, and do.
        self.all_deep = self.seen_deep = 0
        self.turns = 0  # slots that depths take in turn, once a prompt was read

    def generate(self, prompt: Sequence[int], count: int, sampling: SamplingOptions) -> list[Token]:
        """``count`` tokens behind ``prompt``."""
        choose, text = Sampler(sampling).choose, list[Token]()
        tokens = list(prompt)
        logits, depth = self.prompt(tokens)
        while True:
            at = len(tokens)
            tokens.append(choose(logits, np.array(tokens), at))
            scores = logits + noise(sampling.seed, at, len(logits)) * sampling.temperature
            self._near(*np.sort(scores)[:-3:-1])
            text.append(Token(tokens[-1], depth, self.margin))
            if len(text) == count:
                return text
            self.margin = np.inf
            logits, depth = self.step(tokens[-1], at)

    def prompt(self, tokens: Sequence[int]) -> tuple[F32, int]:
        """All of a prompt: every depth, or as the router says → the last one's logits [V] and depths."""
        if self.program.routing is not None:
            return self._routed(tokens, 0)
        together = len(tokens) if self.program.prefix_lm else 1
        for position in range(0, len(tokens), together):
            x = self._prologue(tokens[position : position + together], position)
            for depth in range(self.program.depths):
                x = self._block(depth, x, position, position)
            for i in range(len(x)):
                self._leave(x[i : i + 1], x[i : i + 1], position + i)
            logits = self._read(x, position)
        self.rows = [len(tokens)] * self.program.depths
        if self.kv.startswith("last"):
            depths, self.turns = self.program.depths, int(self.kv.removeprefix("last").lstrip("-") or 1)
            kept = {("block", d % self.turns): self.slots["block", d] for d in range(depths)[-self.turns :]}
            self.slots.update(kept)
        return logits, self.program.depths

    def step(self, token: int, position: int) -> tuple[F32, int]:
        """One more token → its logits [V] and its depths."""
        if self.program.routing is not None:
            return self._routed([token], position)
        x = self._prologue([token], position)
        states, read, last = [x], list[F32](), self.program.depths - 1
        for depth in range(self.program.depths):
            x = self._block(depth, x, self.rows[depth] if self.skipped_kv == "skip" else position, position)
            self.rows[depth] += 1
            states.append(x)
            if depth == last:
                break
            if self.name in READS_LOGITS:
                read.append(self._read(x, position))
            if self._leaves(Seen([s[0, : self.program.loop.carries[0].width] for s in states], read)):
                break
        deep = x
        if depth < last:
            deep = self._skipped(depth, x, position)
        else:
            self.all_deep = position + 1
        self._leave(x, deep, position)
        return self._read(x, position), depth + 1

    def _leaves(self, seen: Seen) -> bool:
        depth = len(seen.states) - 2
        if self.name == "never":
            return False
        if self.name == "depth":
            return depth + 1 >= self.numbers[0]
        score, above = SCORES[self.name]
        threshold = self.numbers[depth] if len(self.numbers) > 1 else self.numbers[0]
        found = score(seen, self.heads)
        self._near(10 * found, 10 * threshold)  # most are probabilities, which move less than logits do
        return found >= threshold if above else found <= threshold

    def _near(self, found: npt.ArrayLike, other: npt.ArrayLike) -> None:
        """A decision depended on which of the two is the larger."""
        gaps = np.abs(np.subtract(found, other, dtype=np.float64))
        self.margin = min(self.margin, float(gaps.min(initial=np.inf)))

    def _skipped(self, depth: int, x: F32, position: int) -> F32:
        """What the deeper depths get of a token that left after ``depth`` → its state after all depths, or x."""
        deeper = range(depth + 1, self.program.depths)
        if self.skipped_kv == "exact":
            for d in deeper:
                x = self._block(d, x, position, position)
        elif self.skipped_kv == "propagate":
            for d in deeper:
                stage = keys_values(self.program.stage("block", d))
                made = iter(compute(stage, self._lane("block", d, d, position, position), *self._carries(x)))
                for slot in self._slots("block", d):
                    for rows in (slot.keys, slot.values):
                        rows[:, position] = next(made).reshape(len(rows), -1)
        elif self.skipped_kv == "latest" or self.turns:
            for d in deeper[: max(self.turns - depth - 1, 0)] if self.turns else deeper:
                for own, slot in zip(self._slots("block", depth), self._slots("block", d), strict=True):
                    slot.keys[:, position] = own.keys[:, position]
                    slot.values[:, position] = own.values[:, position]
                self.kept_rows["block", d] = dict(self.kept_rows.get(("block", depth), {}))
        return x

    def _leave(self, x: F32, deep: F32, position: int) -> None:
        assert position == len(self.left)
        self.left.append(x)
        self.deep.append(deep)

    def _read(self, x: F32, position: int) -> F32:
        """Logits [V] of a token with state x; of those before it the layers after the loop see what there is."""
        if self.program.caches("epilogue") and self.skipped_kv == "exact":
            for before in range(self.seen_deep, min(self.all_deep, position)):
                self._epilogue(self.deep[before], before)
            self.seen_deep = max(self.seen_deep, min(self.all_deep, position))
        return self._epilogue(x, position)

    def _routed(self, tokens: Sequence[int], first: int) -> tuple[F32, int]:
        """A chunk of tokens → logits [V] and depths of the last one."""
        routing, last = self.program.routing, len(tokens) - 1
        assert routing is not None
        x = np.concatenate([self._prologue([token], first + i) for i, token in enumerate(tokens)])
        gated, everyone = routing.gated, self.name == "never"
        most = int(self.numbers[0]) if self.name == "depth" else self.program.depths
        if routing.kind == "token":
            z = np.stack([self._score("router", d, x) for d in range(self.program.depths)], 1)
            p = np.stack([softmax(row) for row in z]) if routing.squash == "softmax" else squash(z, routing)
            judged = p + self.heads["router.bias"]
            self._near(*np.sort(judged, 1).T[-1:-3:-1])
            choice = np.minimum(judged.argmax(1), most - 1)
            choice = np.full_like(choice, self.program.depths - 1) if everyone else choice
            gates = p[np.arange(len(x)), choice] * routing.alpha if gated else np.ones(len(x))
            h = x.copy()
            for depth in range(self.program.depths):
                h[choice >= depth] = self._rows(depth, h, np.flatnonzero(choice >= depth), first)
            x = (x + gates[:, None] * h).astype(np.float32)
            ran = int(choice[last]) + 1
        else:
            rows, ran = np.arange(len(x)), 0
            for depth in range(most):
                p = squash(self._score("router", depth, x[rows]), routing)
                judge, middle = p, 0.5 if routing.squash == "sigmoid" else 0.0
                if routing.auxiliary:
                    judge, middle = sigmoid(self._score("auxiliary", depth, x[rows])), 0.5
                if self.name == "chunk-topk" and routing.capacity[depth] < 1:
                    best = max(1, int(routing.capacity[depth] * len(x)))
                    order = np.argsort(-p, kind="stable")
                    on = np.isin(np.arange(len(rows)), order[:best])
                    if best < len(p):
                        self._near(*p[order[best - 1 : best + 1]])
                elif everyone or routing.capacity[depth] >= 1:
                    on = np.ones(len(rows), bool)
                else:
                    middle = self.numbers[0] if self.name == "router" and self.numbers else middle
                    self._near(judge, middle)
                    on = judge >= middle
                rows, p = rows[on], p[on]
                out = self._rows(depth, x, rows, first)
                gates = routing.alpha * p if gated else np.ones(len(rows))
                x[rows] += (gates[:, None] * out).astype(np.float32)
                ran += int(last in rows)
        for i in range(len(x)):
            self._leave(x[i : i + 1], x[i : i + 1], first + i)
            logits = self._read(x[i : i + 1], first + i)
        return logits, ran

    def _rows(self, depth: int, x: F32, rows: npt.NDArray[np.int64], first: int) -> F32:
        """``rows`` of x through a depth, each behind those before it; where depths share K and V all have some."""
        shares, out = self.program.shares_kv, np.empty((len(rows), x.shape[1]), np.float32)
        for i in range(len(x)) if shares and depth == 0 else rows:
            row = first + i if shares else self.rows[depth]
            found = self._block(depth, x[i : i + 1], row, first + i)
            self.rows[depth] += 1
            if i in rows:
                out[np.searchsorted(rows, i)] = found
        return out

    def _score(self, head: str, depth: int, x: F32) -> F32:
        assert self.program.routing is not None
        x = x / np.float32(self.program.routing.temperature)
        if (hidden := self.heads.get(f"{head}.hidden")) is not None:
            x = x @ hidden[min(depth, len(hidden) - 1)].T
            x = x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2
        z: F32 = x @ self.heads[f"{head}.weight"][depth]
        return z

    def _prologue(self, tokens: Sequence[int], position: int) -> F32:
        n = len(tokens)
        hosts = {
            "ids": np.array(tokens),
            "positions": position + np.arange(n),
            "types": np.zeros(n, np.int64),
        }
        stage = self.program.prologue
        lane = self._lane("prologue", 0, 0, position, position, n)
        return np.concatenate(compute(stage, lane, *(hosts[name] for name in stage.inputs)), axis=1)

    def _block(self, depth: int, x: F32, row: int, position: int) -> F32:
        """x [n, D] of the tokens from ``position`` on, whose K and V go into the rows from ``row`` on."""
        slot = 0 if self.program.shares_kv else depth % (self.turns or self.program.depths)
        lane = self._lane("block", slot, depth, row, position, len(x))
        return np.concatenate(compute(self.blocks[depth], lane, *self._carries(x)), axis=1)

    def _epilogue(self, x: F32, position: int) -> F32:
        lane = self._lane("epilogue", 0, 0, position, position, len(x))
        found = compute(self.program.epilogue, lane, *self._carries(x))
        (logits,) = compute(self.program.head, lane, *found)
        row: F32 = np.asarray(logits[-1], np.float32)
        return row

    def _carries(self, x: F32) -> list[F32]:
        return np.split(x, np.cumsum([carry.width for carry in self.program.loop.carries])[:-1], axis=1)

    def _slots(self, stage: str, slot: int) -> list[Slot]:
        if (stage, slot) not in self.slots:
            shapes = [
                (c.kv_heads, self.program.context_length, c.head_dim) for c in self.program.caches(stage)
            ]
            self.slots[stage, slot] = [Slot(*(np.zeros(shape, np.float32) for _ in "kv")) for shape in shapes]
        return self.slots[stage, slot]

    def _lane(self, stage: str, slot: int, depth: int, row: int, position: int, count: int = 1) -> Lane:
        return Lane(
            self.weights,
            position + np.arange(count),
            depth,
            row,
            self._slots(stage, slot),
            self._slots(stage, 0),
            self.kept_rows.setdefault((stage, slot), {}),
            0 if row else count,
        )


def squash(z: F32, routing: object) -> F32:
    kind = routing.squash  # type: ignore[attr-defined]
    return sigmoid(z) if kind == "sigmoid" else np.tanh(z) if kind == "tanh" else z
