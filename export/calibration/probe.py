"""Linear probes: how settled a token's prediction is after a depth, from its state, at D multiplications.

A logistic regression for each depth but the last. At run time its score is σ(w·x / rms(x) + b) with rms(x) = √(mean x²
+ 1e-6). Its target is what the goal counts: that the likeliest token is that of full depth, a yes or no, or exp(−KL)
from full depth's prediction to this one, which says what leaving costs in nats before the next token is drawn. On the
demo model's validation text, +1% perplexity then takes 1.62 depths instead of 1.67. The regression is fitted on
standardised features, which is folded back into w and b.

The strength of the L2 penalty is chosen on the end of the text, not on tokens drawn from all over it: neighbours share
their context, so that one would leak into the other. The probes stay those fitted on the beginning, so that thresholds
can be searched on tokens they have not seen (``Probes.fitted_tokens`` on); on the fitted ones they look too good.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UsageError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

RMS_EPS = 1e-6
SETTLED = 30.0
"""Bias of a probe that has seen only one answer: σ(30) is 1 and σ(−30) is 1e-13, both far from overflow."""

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: smaller is stronger
_ITERATIONS = 300
_FEWEST = 20


@dataclass(frozen=True)
class ProbeFit:
    """The quality of one depth's probe on the held-out end of the text.

    ``auc``: probability that it ranks a token of which more than half is settled above another, None where only one
    kind is there; ``loss``: nats a token; ``settled``: mean of the target; ``penalty``: the C that was chosen, None
    where the beginning of the text has only one answer and nothing was fitted.
    """

    auc: float | None
    loss: float
    settled: float
    penalty: float | None


@dataclass(frozen=True, eq=False)
class Probes:
    """``weight`` [R − 1, D] and ``bias`` [R − 1] as the bundle stores them, float32, and the quality at each depth."""

    weight: F32
    bias: F32
    fits: tuple[ProbeFit, ...]
    fitted_tokens: int


def fit_probes(states: F32, target: Bool | F32, *, held_out: float = 0.2) -> Probes:
    """Return probes fitted to ``states`` [R − 1, N, D] and ``target`` [R − 1, N], 0 … 1: how settled each token is.

    States are those after each depth, in the order of the text. The last ``held_out`` of the text chooses the
    penalty and is not fitted. UsageError when the text is short.
    """
    depths, tokens, width = states.shape
    fitted = tokens - round(tokens * held_out)
    if target.shape != (depths, tokens):
        raise ValueError(f"target is {target.shape}, wanted {(depths, tokens)}")
    if min(fitted, tokens - fitted) < _FEWEST:
        raise UsageError(
            f"{tokens} tokens are too few to fit a probe: wanted {_FEWEST} to fit and {_FEWEST} to check; "
            "pass a longer text"
        )
    weight, bias = np.zeros((depths, width), np.float32), np.zeros(depths, np.float32)
    fits = []
    for d in range(depths):
        features = normalised(states[d])
        wanted = np.asarray(target[d], np.float64)
        weight[d], bias[d], penalty = _fit(features, wanted, fitted)
        fits.append(_judge(features[fitted:] @ weight[d] + bias[d], wanted[fitted:], penalty))
    return Probes(weight, bias, tuple(fits), fitted)


def probe_scores(states: F32, weight: F32, bias: F32) -> F32:
    """Return σ(w·x / rms(x) + b), [R − 1, N], of ``states`` [R − 1, N, D]."""
    logits = np.stack([normalised(x) @ w + b for x, w, b in zip(states, weight, bias, strict=True)])
    return np.asarray(1 / (1 + np.exp(-logits, dtype=np.float64)), np.float32)


def normalised(states: F32) -> F32:
    """Return ``states`` [N, D], each token divided by its root mean square."""
    mean = np.mean(np.square(states), axis=-1, keepdims=True)
    return np.asarray(states / np.sqrt(mean + RMS_EPS), np.float32)


def _fit(features: F32, target: F64, fitted: int) -> tuple[F64, float, float | None]:
    """Return weight, bias and penalty of one depth; of ``features`` [N, D] the first ``fitted`` are fitted."""
    seen = target[:fitted]
    if seen.min() == seen.max() and seen[0] in (0, 1):
        return np.zeros(features.shape[1]), SETTLED if seen[0] else -SETTLED, None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = features[:fitted].mean(axis=0), features[:fitted].std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)  # a constant feature says nothing
    standard = (features[:fitted] - mean) / spread
    # A token that is settled by p is p of a yes and 1 − p of a no.
    answers = np.repeat([True, False], fitted)
    shares = np.concatenate([seen, 1 - seen])
    told = shares > 0
    twice = np.concatenate([standard, standard])[told]
    best: tuple[float, F64, float, float] | None = None
    # Each fit starts where the one before it ended.
    model = LogisticRegression(warm_start=True, max_iter=_ITERATIONS)
    for penalty in _PENALTIES:
        model.set_params(C=penalty)
        with warnings.catch_warnings():
            # A weak penalty that has not converged is judged like any other: by the held-out text.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(twice, answers[told], sample_weight=shares[told])
        weight = np.asarray(model.coef_[0], np.float64) / spread
        bias = float(model.intercept_[0]) - float(weight @ mean)
        loss = _loss(features[fitted:] @ weight + bias, target[fitted:])
        if best is None or loss < best[0]:
            best = loss, weight, bias, penalty
    assert best is not None
    return best[1:]


def _judge(logits: F32, target: F64, penalty: float | None) -> ProbeFit:
    auc, settled = None, target > 0.5
    if settled.any() and not settled.all():
        from sklearn.metrics import roc_auc_score

        auc = float(roc_auc_score(settled, logits))
    return ProbeFit(auc, _loss(logits, target), float(target.mean()), penalty)


def _loss(logits: npt.NDArray[np.floating], target: F64) -> float:
    """Return nats a token: log(1 + e^−z) for the share that is settled, log(1 + e^z) for the rest."""
    z = np.asarray(logits, np.float64)
    return float((target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z)).mean())
