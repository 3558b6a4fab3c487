"""Exit rules: after which depth a token may stop.

A measure is a pure function of what a depth produced, one line in ``MEASURES``; a rule compares it with a threshold
for each depth but the last. Confidence and entropy: CALM (arXiv 2207.07061), KL, latent, entropy-diff and stable:
Huginn (arXiv 2502.05171, section 6.1, and its code), gate: Ouro (arXiv 2510.25741, section 3).

Scores of states are computed in float64 and rounded at the end: float32 sums depend on their order, and a token would
leave elsewhere on an engine that decides for itself (``whole_tokens.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import NEVER, Exit
from ..engines.backend import F32
from ..errors import UsageError
from ..model.program import Program
from ..wording import shown

F64 = npt.NDArray[np.float64]
Heads = Mapping[str, F32]
EPSILON = np.float32(1e-6)


class Outcome(NamedTuple):
    """What a depth made of N tokens: the state's first carry [N, D] and, for measures that read them, logits [N, V].

    ``before`` is the outcome of the depth before; that of depth 0 is the loop's input, at depth −1, without logits.
    """

    depth: int
    state: F32
    logits: F32 | None = None
    before: Outcome | None = None


def confidence(out: Outcome, heads: Heads) -> F32:
    """Return, [N], the probability of the likeliest token."""
    probabilities: F32 = _softmax(out).max(axis=-1)
    return probabilities


def margin(out: Outcome, heads: Heads) -> F32:
    """Return, [N], the probability of the likeliest token less that of the second."""
    top = np.partition(_softmax(out), -2, axis=-1)
    second, first = top[..., -2], top[..., -1]
    return np.subtract(first, second, dtype=np.float32)


def entropy(out: Outcome, heads: Heads) -> F32:
    """Return, [N], the entropy of the next token, nats."""
    log = _log_softmax(out)
    total: F32 = -(np.exp(log) * log).sum(axis=-1)
    return total


def kl(out: Outcome, heads: Heads) -> F32:
    """Return, [N], the KL divergence from the depth before's prediction to this one's, nats; infinite after depth 0."""
    if out.before is None or out.before.logits is None:
        return np.full(len(out.state), np.inf, np.float32)
    log, old = _log_softmax(out), _log_softmax(out.before)
    divergence: F32 = (np.exp(old) * (old - log)).sum(axis=-1)
    return divergence


def entropy_diff(out: Outcome, heads: Heads) -> F32:
    """Return, [N], by how much the entropy of the next token changed in this depth, nats; infinite after depth 0."""
    if out.before is None or out.before.logits is None:
        return np.full(len(out.state), np.inf, np.float32)
    changed: F32 = np.abs(entropy(out, heads) - entropy(out.before, heads))
    return changed


def stable(out: Outcome, heads: Heads) -> F32:
    """Return, [N], after how many depths before this one the likeliest token was the same, without a break."""
    assert out.logits is not None
    now, same = out.logits.argmax(axis=-1), np.ones(len(out.state), bool)
    count, earlier = np.zeros(len(out.state), np.float32), out.before
    while earlier is not None and earlier.logits is not None and same.any():
        same &= earlier.logits.argmax(axis=-1) == now
        count += same
        earlier = earlier.before
    return count


def latent(out: Outcome, heads: Heads) -> F32:
    """Return, [N], how far the state moved in this depth, relative to its length."""
    assert out.before is not None
    state = out.state.astype(np.float64)
    moved = state - out.before.state
    change: F64 = np.sqrt(np.vecdot(moved, moved)) / (np.sqrt(np.vecdot(state, state)) + EPSILON)
    return change.astype(np.float32)


def gate(out: Outcome, heads: Heads) -> F32:
    """Return, [N], the probability that the exit gate has stopped by now, 1 − Π(1 − σ(gate))."""
    weight = heads["gate.weight"].astype(np.float64)
    stay = np.ones(len(out.state))
    step: Outcome | None = out
    while step is not None and step.depth >= 0:
        stay = stay * sigmoid(-(step.state.astype(np.float64) @ weight + heads["gate.bias"]))
        step = step.before
    return (1 - stay).astype(np.float32)


def probe(out: Outcome, heads: Heads) -> F32:
    """Return, [N], how settled a linear probe takes the prediction to be, 0 … 1 (export/calibration/probe.py)."""
    x, d = out.state.astype(np.float64), out.depth
    rms = np.sqrt(np.vecdot(x, x) / x.shape[-1] + EPSILON)
    score = sigmoid(x @ heads["probe.weight"][d].astype(np.float64) / rms + heads["probe.bias"][d])
    return score.astype(np.float32)


@dataclass(frozen=True)
class Measure:
    """``score`` of an outcome; a token leaves when it is at least (``up``) or at most the threshold.

    ``wants``: thresholds that make sense. ``head``: the prefix of the heads that it needs.
    """

    score: Callable[[Outcome, Heads], F32]
    up: bool
    reads_logits: bool
    wants: tuple[float, float]
    head: str | None = None


_INF = float("inf")
MEASURES: dict[str, Measure] = {
    "confidence": Measure(confidence, True, True, (0, 1)),
    "margin": Measure(margin, True, True, (0, 1)),
    "entropy": Measure(entropy, False, True, (0, _INF)),
    "kl": Measure(kl, False, True, (0, _INF)),
    "entropy-diff": Measure(entropy_diff, False, True, (0, _INF)),
    "stable": Measure(stable, True, True, (0, _INF)),
    "latent": Measure(latent, False, False, (0, _INF)),
    "gate": Measure(gate, True, False, (0, 1), head="gate"),
    "probe": Measure(probe, True, False, (0, 1), head="probe"),
}


@dataclass(frozen=True)
class ExitRule:
    """Leaves after depth d when ``measure`` passes ``thresholds[d]``; without a measure, after ``stop`` depths."""

    name: str
    stop: int
    measure: Measure | None = None
    thresholds: tuple[float, ...] = ()
    never: bool = False
    """Whether every token runs every depth."""

    @property
    def reads_logits(self) -> bool:
        """Whether every depth has to be read out."""
        return self.measure is not None and self.measure.reads_logits

    whole_text: ClassVar[bool] = False
    """Tokens leave one by one, whatever comes after them."""

    @property
    def exits_early(self) -> bool:
        """Whether a token may leave before the last depth."""
        return not self.never

    @property
    def token_by_token(self) -> bool:
        """Whether tokens of a prompt run every depth, which generated ones do not."""
        return not self.never

    def leaves(self, out: Outcome, heads: Heads) -> bool:
        """Return whether the one token of ``out`` stops here."""
        if out.depth + 1 >= self.stop:
            return True
        if self.measure is None:
            return False
        score, threshold = self.measure.score(out, heads)[0], self.thresholds[out.depth]
        return bool(score >= threshold if self.measure.up else score <= threshold)


ROUTED = ("router", "chunk-topk")
"""Names of rules of models that have a router (``routing.py``)."""


def parse_rule(text: str, program: Program, heads: Heads, calibrated: Mapping[str, Exit]) -> ExitRule:
    """Return the rule that ``text`` names: ``never``, ``depth:N``, or ``measure:θ`` (one, or one for each depth but
    the last).

    Without thresholds they are those of ``edgeloop calibrate``. UsageError: an unknown rule, a threshold that is out
    of range, a rule that needs a head that the model has not, or calibration that was not done.
    """
    name, _, rest = text.partition(":")
    depths = program.depths
    if name == "never" and not rest:
        return ExitRule("never", depths, never=True)
    if name == "depth":
        if rest not in map(str, range(1, depths + 1)):
            raise UsageError(
                f"exit rule {shown(text)}: wanted depth:1 to depth:{depths}, the depths of this model"
            )
        return ExitRule(name, int(rest))
    if name not in MEASURES:
        known = ("never", "depth:N", *(f"{m}:θ" for m in MEASURES))
        why = "the model has no router" if name in ROUTED else "there is no such rule"
        raise UsageError(f"exit rule {text!r}: {why}; known: {', '.join(known)}")
    measure = MEASURES[name]
    if not rest and name in calibrated and (own := len(calibrated[name].thresholds) + 1) != depths:
        raise UsageError(
            f"exit rule {name!r}: its thresholds were found for {own} depths, and the model is run at {depths}; give "
            f"others ({name}:θ), or export the model with --depth {depths} and calibrate that"
        )
    if measure.head is not None and f"{measure.head}.weight" not in heads:
        what = {"gate": "has no exit gate", "probe": "has no probes: fit them with `edgeloop calibrate`"}
        raise UsageError(f"exit rule {text!r}: the model {what[measure.head]}")
    if not rest:
        if name not in calibrated:
            raise UsageError(
                f"exit rule {name!r} has no threshold; give one ({name}:θ) or let `edgeloop calibrate` find them"
            )
        return ExitRule(name, depths, measure, calibrated[name].thresholds)
    return ExitRule(name, depths, measure, _thresholds(text, rest, measure, depths))


def _thresholds(text: str, rest: str, measure: Measure, depths: int) -> tuple[float, ...]:
    low, high = measure.wants
    try:
        values = tuple(float(part) for part in rest.split(","))
    except ValueError:
        raise UsageError(f"exit rule {text!r}: {rest!r} is not a number, or numbers with commas") from None
    if len(values) == 1:
        values *= depths - 1
    if len(values) != depths - 1:
        wanted = f"1 or {depths - 1}, one for each depth but the last" if depths > 2 else "1"
        raise UsageError(f"exit rule {text!r}: {len(values)} thresholds, wanted {wanted}")
    for value in values:
        if not (low <= value <= high or abs(value) >= NEVER):
            raise UsageError(f"exit rule {text!r}: threshold {value:g}, wanted {low:g} to {high:g}")
    return values


def _log_softmax(out: Outcome) -> F32:
    assert out.logits is not None
    shifted = out.logits - out.logits.max(axis=-1, keepdims=True)
    log: F32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log


def _softmax(out: Outcome) -> F32:
    assert out.logits is not None
    e: F32 = np.exp(out.logits - out.logits.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def sigmoid(x: F64) -> F64:
    """Return σ(x), which overflows nowhere."""
    result: F64 = np.tanh(x * 0.5) * 0.5 + 0.5
    return result
