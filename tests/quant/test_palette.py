"""Tables of 16 values: what they keep of a weight, and which rows share one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeloop.quant.pack import quantize
from edgeloop.quant.palette import palettize, table_rows

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
    assert table_rows([4096]) == 16
    assert table_rows([256, 128, 128]) == 16
    assert table_rows([29 * 1733]) == 29
    assert table_rows([32, 8, 8]) == 8
    assert table_rows([7]) == 7
    assert table_rows([60, 20]) == 20
