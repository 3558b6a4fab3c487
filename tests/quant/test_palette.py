"""Tables of 16 values: what they keep of a weight, and which rows share one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeloop.quant import palette
from edgeloop.quant.gptq import gptq
from edgeloop.quant.pack import quantize
from edgeloop.quant.palette import fitted_palette, palettize
from edgeloop.runtime.model.codec import rows_of_table

pytest.importorskip("coremltools")


def test_weights_of_16_values_are_kept_exactly() -> None:
    values = torch.linspace(-1, 1, 16).half().float()
    weight = values[torch.randint(16, (32, 48), generator=torch.Generator().manual_seed(0))]
    found = palettize(weight, 16)
    np.testing.assert_array_equal(found.values(), weight.numpy())
    assert found.indices.dtype == np.uint8
    assert found.indices.max() == 15
    assert found.tables.shape == (2, 16)


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_a_matrix_of_one_value(value: float) -> None:
    weight = torch.full((4, 6), value)
    np.testing.assert_array_equal(palettize(weight, 2).values(), weight.numpy())


def test_each_weight_has_the_nearest_entry_and_each_entry_is_a_mean() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    found = palettize(weight, 16)
    for t in range(2):
        rows, table = weight[16 * t : 16 * t + 16].numpy(), found.tables[t].astype(np.float32)
        nearest = np.abs(rows[..., None] - table).min(-1)
        np.testing.assert_array_equal(np.abs(found.values()[16 * t : 16 * t + 16] - rows), nearest)
        indices = found.indices[16 * t : 16 * t + 16]
        for entry in range(16):
            assert abs(rows[indices == entry].mean() - table[entry]) < 0.02


def test_normal_weights_lose_about_as_much_as_in_groups_of_32() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [
        np.square(kept - weight.numpy()).mean()
        for kept in (palettize(weight, 16).values(), quantize(weight, 4, 32).values())
    ]
    # 16 free values against 16 even ones with a scale each 32: 4.1 bits against 4.5.
    assert errors[0] < 1.2 * errors[1]


def test_rows_that_share_a_table_belong_to_one_part() -> None:
    assert rows_of_table([4096]) == 16
    assert rows_of_table([256, 128, 128]) == 16
    assert rows_of_table([29 * 1733]) == 29
    assert rows_of_table([32, 8, 8]) == 8
    assert rows_of_table([7]) == 7
    assert rows_of_table([60, 20]) == 20


def errors(weight: torch.Tensor, hessian: torch.Tensor, kept: np.ndarray) -> float:
    """Σ ‖(W − Q) x‖² over the inputs that ``hessian`` is the sum of."""
    wrong = (weight - torch.from_numpy(kept)).double()
    return float((wrong @ hessian.double() * wrong).sum())


def test_fitted_tables_make_outputs_less_wrong() -> None:
    """Beside the nearest entries of the same format, and beside codes of more bits a weight."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(96, 96, generator=generator) * 0.3 + torch.diag(
        torch.rand(96, generator=generator) * 3
    )
    x = torch.randn(2000, 96, generator=generator) @ mixed
    weight, hessian = torch.randn(64, 96, generator=generator), x.T @ x
    found = fitted_palette(weight, 16, hessian)
    assert found.tables.shape == (4, 16)
    assert (np.diff(found.tables.astype(np.float32)) >= 0).all()
    assert found.indices.max() < 16
    nearest = errors(weight, hessian, palettize(weight, 16).values())
    assert errors(weight, hessian, found.values()) < 0.7 * nearest
    assert errors(weight, hessian, gptq(weight, hessian, 4, 32).values()) < nearest


def test_fitted_tables_undo_a_drift() -> None:
    """For inputs x̂ in place of x, outputs come closer to those of x than the float matrix itself gets."""
    generator = torch.Generator().manual_seed(1)
    meant = torch.randn(1000, 32, generator=generator)
    given = 0.8 * meant + 0.1 * torch.randn(1000, 32, generator=generator)
    weight = torch.randn(32, 32, generator=generator)
    found = fitted_palette(weight, 16, given.T @ given, (meant - given).T @ given)
    wanted = meant @ weight.T
    lost, floats = (
        float((wanted - given @ torch.as_tensor(each).T).square().mean()) for each in (found.values(), weight)
    )
    assert lost < 0.7 * floats


def test_many_rows_are_fitted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(64, 24, generator=generator), torch.randn(500, 24, generator=generator)
    whole = fitted_palette(weight, 16, x.T @ x)
    monkeypatch.setattr(palette, "NUMBERS", 24 * 40)  # 40 rows: those of two tables
    found = fitted_palette(weight, 16, x.T @ x)
    np.testing.assert_array_equal(found.tables, whole.tables)
    assert (
        found.indices != whole.indices
    ).mean() < 0.01  # products of other sizes are added in another order
