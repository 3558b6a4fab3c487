"""Probes on states where the right answer is known."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from edgeloop.export.calibration.probe import fit_probes, normalised, probe_scores
from edgeloop.runtime.errors import UsageError


def states(depths: int, tokens: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Columns of very different scale and offset, as in a residual stream, and rows of different length.
    x = rng.standard_normal((depths, tokens, width)) * np.geomspace(0.01, 30, width) + np.linspace(
        -2, 2, width
    )
    return (x * rng.uniform(0.5, 20, (depths, tokens, 1))).astype(np.float32)


def test_a_separable_target_is_learnt_and_the_scores_are_probabilities() -> None:
    x = states(2, 3000, 12)
    direction = np.random.default_rng(1).standard_normal(12) / np.geomspace(0.01, 30, 12)
    z = np.stack([normalised(s) @ direction for s in x])
    target = z > np.median(z)
    probes = fit_probes(x, target)
    assert probes.weight.shape == (2, 12)
    assert probes.bias.shape == (2,)
    assert probes.weight.dtype == probes.bias.dtype == np.float32
    assert probes.fitted_tokens == 2400
    scores = probe_scores(x, probes.weight, probes.bias)
    assert scores.dtype == np.float32
    assert np.mean((scores > 0.5) == target) > 0.98
    for d, fit in enumerate(probes.fits):
        assert fit.auc is not None
        assert fit.auc > 0.999
        assert fit.auc == pytest.approx(roc_auc_score(target[d, 2400:], scores[d, 2400:]), abs=1e-3)


def test_the_folded_probe_is_scikit_learns_on_standardised_features() -> None:
    x = states(1, 1000, 8)
    rng = np.random.default_rng(2)
    target = normalised(x[0])[:, 7] + rng.standard_normal(1000) * 0.5 > 1
    probes = fit_probes(x, target[None])
    features = (x[0] / np.sqrt(np.mean(x[0].astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6))[:800]
    standard = (features - features.mean(0)) / features.std(0)
    penalty = probes.fits[0].penalty
    assert penalty is not None
    model = LogisticRegression(C=penalty, max_iter=1000).fit(standard, target[:800])
    ours = probe_scores(x, probes.weight, probes.bias)[0, :800]
    np.testing.assert_allclose(ours, model.predict_proba(standard)[:, 1], atol=2e-3)


def test_the_length_of_a_state_does_not_matter() -> None:
    x = states(1, 400, 6)
    probes = fit_probes(x, (x[:, :, 5] > 0))
    np.testing.assert_allclose(
        probe_scores(x * 8, probes.weight, probes.bias),
        probe_scores(x, probes.weight, probes.bias),
        atol=1e-4,
    )


def test_noise_ranks_like_a_coin_and_takes_the_strongest_penalty() -> None:
    x = states(2, 8000, 16)
    target = np.random.default_rng(3).random((2, 8000)) < 0.7
    for fit in fit_probes(x, target).fits:
        assert fit.auc == pytest.approx(0.5, abs=0.04)
        assert fit.penalty == 1e-4
        assert fit.loss == pytest.approx(-0.7 * np.log(0.7) - 0.3 * np.log(0.3), abs=0.02)


def test_a_random_walk_is_noise_too() -> None:
    # Neighbours share state and target: rows drawn at random would call this a good probe.
    rng = np.random.default_rng(4)
    walk = np.cumsum(rng.standard_normal((4000, 32)), axis=0)[None].astype(np.float32)
    target = np.repeat(rng.random(40) < 0.5, 100)[None]
    (fit,) = fit_probes(walk, target).fits
    assert fit.penalty == 1e-4
    assert fit.auc is not None
    assert fit.auc < 0.8


def test_a_share_is_learnt_as_its_logistic() -> None:
    x = states(1, 4000, 6)
    standard = normalised(x[0])
    z = 2 * (standard[:, 5] - standard[:, 5].mean()) / standard[:, 5].std()
    share = 1 / (1 + np.exp(-z))
    probes = fit_probes(x, share[None])
    np.testing.assert_allclose(probe_scores(x, probes.weight, probes.bias)[0], share, atol=0.03)
    assert probes.fits[0].settled == pytest.approx(share[3200:].mean())


def test_one_kind_of_target_gives_a_constant_probe() -> None:
    x = states(2, 200, 4)
    target = np.array([[True] * 200, [False] * 200])
    probes = fit_probes(x, target)
    assert not probes.weight.any()
    assert list(probes.bias) == [30, -30]
    assert probe_scores(x, probes.weight, probes.bias)[:, 0].tolist() == pytest.approx([1, 0], abs=1e-12)
    assert [(f.auc, f.penalty) for f in probes.fits] == [(None, None), (None, None)]
    assert max(f.loss for f in probes.fits) < 1e-12


def test_one_kind_at_the_end_only_has_no_auc_but_a_probe() -> None:
    x = states(1, 500, 4)
    target = np.where(np.arange(500) < 400, x[0, :, 3] > 0, True)[None]
    (fit,) = fit_probes(x, target).fits
    assert fit.auc is None
    assert fit.penalty is not None
    assert np.isfinite(fit.loss)


def test_zero_states_and_constant_features_are_no_trouble() -> None:
    x = states(1, 500, 4)
    x[0, :100] = 0
    x[..., 1] = 0
    probes = fit_probes(x, x[..., 3] > 0)
    assert np.isfinite(probes.weight).all()
    assert probes.weight[0, 1] == 0


def test_short_texts_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="60 tokens are too few to fit a probe: .* pass a longer text"):
        fit_probes(states(1, 60, 4), np.ones((1, 60), np.bool_))
    with pytest.raises(ValueError, match="target is"):
        fit_probes(states(1, 600, 4), np.ones((2, 600), np.bool_))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from edgeloop.export.calibration import probe, report, search; "
        "sys.exit(bool({'sklearn', 'matplotlib', 'torch', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
