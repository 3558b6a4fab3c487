"""GPTQ against the paper's recursion written out plainly, and against all codes that there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgeloop.quant.gptq import DAMPING, correction, gptq
from edgeloop.quant.pack import quantize
from edgeloop.quant.scales import searched
from edgeloop.runtime.model.codec import Grouped, around_zero

F64 = npt.NDArray[np.float64]


def inputs(columns: int, seed: int = 0, samples: int = 256) -> torch.Tensor:
    """Correlated inputs [samples, K], some columns larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(samples, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    return mixed * torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]


def weight(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def loss(w: torch.Tensor, found: Grouped, hessian: torch.Tensor) -> float:
    """Return Σ ‖(W − Q) x‖², from the definition."""
    error = w.double().numpy() - found.values().astype(np.float64)
    return float(np.einsum("nk,kl,nl->", error, hessian.double().numpy(), error))


def recursion(w: F64, hessian: F64, scales: F64, order: list[int], bits: int) -> npt.NDArray[np.int64]:
    """Codes [N, K] by the paper's equations 2 and 3: one column, its error on all that are left, H⁻¹ without it."""
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    w, codes = w.copy(), np.zeros(w.shape, np.int64)
    inverse = np.linalg.inv(hessian)
    for k in order:
        codes[:, k] = np.clip(np.rint(w[:, k] / scales[:, k]), low, high)
        error = (w[:, k] - codes[:, k] * scales[:, k]) / inverse[k, k]
        w -= np.outer(error, inverse[k])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k], inverse[:, k] = 0, 0  # gone: nothing is passed on to it any more
    return codes


@pytest.mark.parametrize(
    ("bits", "group", "columns"), [(4, 32, 64), (4, 32, 40), (4, 0, 24), (8, 32, 300), (4, 128, 300)]
)
def test_codes_are_those_of_the_papers_recursion(bits: int, group: int, columns: int) -> None:
    w, x = weight(6, columns), inputs(columns)
    hessian = x.T @ x
    found = gptq(w, hessian, bits, group)
    damped = hessian.double().numpy() + DAMPING * float(hessian.diagonal().mean()) * np.eye(columns)
    scales = np.repeat(found.scales.astype(np.float64), group or columns, axis=1)[:, :columns]
    order = np.argsort(-np.diag(damped), kind="stable").tolist()
    wanted = recursion(w.double().numpy(), damped, scales, order, bits)
    codes = around_zero(found.codes, bits).reshape(len(w), -1)
    # float32 against float64: a value in the middle between two codes may go either way, and take others with it.
    assert (codes[:, :columns] != wanted).mean() < 0.01
    assert not codes[:, columns:].any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64), (4, 0)])
def test_outputs_are_less_wrong_than_with_the_nearest_codes(bits: int, group: int, seed: int) -> None:
    w, x = weight(16, 160, seed), inputs(160, seed + 100)
    hessian = x.T @ x
    to_nearest = loss(w, quantize(w, bits, group), hessian)
    assert loss(w, quantize(w, bits, group, searched), hessian) < 1.2 * to_nearest
    assert loss(w, gptq(w, hessian, bits, group), hessian) < 0.6 * to_nearest


def test_all_codes_of_a_tiny_matrix() -> None:
    """Of four columns all 16⁴ codes of a row can be tried: none is better than the best, and GPTQ is near it."""
    w, x = weight(4, 4), inputs(4)
    hessian = x.T @ x
    found = gptq(w, hessian, 4, 0)
    every = np.array(list(product(range(-8, 8), repeat=4)), np.float64)
    h, best, mine, plain = hessian.double().numpy(), 0.0, 0.0, 0.0
    for row in range(4):
        scale, wanted = float(found.scales[row, 0]), w[row].double().numpy()
        errors = wanted - every * scale
        best += np.einsum("nk,kl,nl->n", errors, h, errors).min()
        error = wanted - found.values()[row].astype(np.float64)
        mine += error @ h @ error
        error = wanted - np.clip(np.rint(wanted / scale), -8, 7) * scale
        plain += error @ h @ error
    assert best * (1 - 1e-6) <= mine < plain


def test_inputs_that_never_come_and_inputs_that_are_all_alike() -> None:
    w = weight(5, 64)
    for hessian in (torch.zeros(64, 64), torch.eye(64), torch.ones(64, 64), torch.diag(torch.arange(64.0))):
        values = gptq(w, hessian, 4, 32).values()
        assert np.isfinite(values).all()
        assert np.abs(values - w.numpy()).max() < 0.2


def test_without_correlations_it_is_the_nearest_code_of_searched_scales() -> None:
    w = weight(5, 70)
    found, wanted = gptq(w, torch.eye(70), 4, 32), quantize(w, 4, 32, searched)
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.scales, wanted.scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_searched_scales_have_the_least_error_of_those_that_are_tried(bits: int) -> None:
    w = weight(8, 96)
    scales = searched(w.unflatten(1, (-1, 32)), bits)
    error = np.square(quantize(w, bits, 32, searched).values() - w.numpy()).reshape(8, 3, 32).sum(-1)
    plain = np.square(quantize(w, bits, 32).values() - w.numpy()).reshape(8, 3, 32).sum(-1)
    assert (error <= plain).all()
    assert torch.equal(scales, scales.bfloat16().float())
    assert error.sum() < plain.sum()


def test_an_error_weighs_what_its_column_does() -> None:
    w = weight(4, 32)
    w[:, 0] = 1.0  # much larger than the rest
    heavy = torch.full((1, 32), 1e-6)
    heavy[0, 0] = 1.0
    scales = searched(w.unflatten(1, (-1, 32)), 4, heavy)
    kept = quantize(w, 4, 32, lambda x, bits: searched(x, bits, heavy)).values()[:, 0]
    light = quantize(w, 4, 32, lambda x, bits: searched(x, bits, 1 - heavy)).values()[:, 0]
    assert np.abs(kept - 1).max() < np.abs(light - 1).min()
    assert scales.shape == (4, 1)


def test_a_corrected_matrix_is_the_least_squares_one() -> None:
    """Beside numpy's own solver, with rows that stand for the damping."""
    w, meant = weight(5, 24), inputs(24)
    given = meant + inputs(24, seed=3) * 0.2
    hessian = given.T @ given
    drift = (meant - given).T @ given
    found = w + w @ correction(hessian, drift)
    push = (DAMPING * float(hessian.diagonal().mean())) ** 0.5 * torch.eye(24)
    rows = torch.cat((given, push)).double().numpy()
    wanted = np.linalg.lstsq(rows, (torch.cat((meant, push)) @ w.T).double().numpy(), rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    for bits, group in ((8, 32), (4, 0)):
        codes, plain = gptq(w, hessian, bits, group, drift), gptq(found, hessian, bits, group)
        assert (codes.codes != plain.codes).mean() < 0.01  # they differ by the order of adding
    assert float((given @ found.T - meant @ w.T).norm()) < float((given @ w.T - meant @ w.T).norm())


def test_inputs_as_they_should_be_correct_nothing() -> None:
    w, x = weight(5, 24), inputs(24)
    assert not correction(x.T @ x, torch.zeros(24, 24)).any()
    plain, found = gptq(w, x.T @ x, 4, 0), gptq(w, x.T @ x, 4, 0, torch.zeros(24, 24))
    np.testing.assert_array_equal(found.codes, plain.codes)
