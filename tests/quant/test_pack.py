"""Codes and scales against the plainest implementation that there is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgeloop.quant.pack import LARGEST_SCALE, SMALLEST_SCALE, quantize
from edgeloop.runtime.model.codec import unpack

SHAPES = [(1, 32), (7, 64), (5, 33), (3, 1), (4, 200), (2, 129)]
F32 = npt.NDArray[np.float32]


def random(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def to_bfloat16(x: np.float32) -> np.float32:
    """Round to nearest even by hand."""
    bits = int(np.array(x, np.float32).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.array(bits, np.uint32).view(np.float32)[()]


def plainly(weight: F32, bits: int, group_size: int) -> tuple[list[list[list[int]]], list[list[float]]]:
    """Signed integers [N][groups][G] and scales [N][groups], one number at a time."""
    largest = 2 ** (bits - 1) - 1
    lowest = -8 if bits == 4 else -127
    integers, scales = [], []
    for row in weight:
        row = np.append(row, np.zeros(-len(row) % group_size, np.float32))
        groups = row.reshape(-1, group_size)
        row_scales = [
            min(max(to_bfloat16(np.abs(g).max() / np.float32(largest)), 2.0**-14), 65280.0) for g in groups
        ]
        scales.append([float(s) for s in row_scales])
        integers.append(
            [
                [int(min(max(np.rint(x / np.float32(s)), lowest), largest)) for x in g]
                for g, s in zip(groups, row_scales, strict=True)
            ]
        )
    return integers, scales


def as_bytes(integers: list[list[list[int]]], bits: int) -> npt.NDArray[np.uint8]:
    offset = 2 ** (bits - 1)
    if bits == 8:
        return np.array([[[i + offset for i in g] for g in row] for row in integers], np.uint8)
    pairs = [
        [[(g[i] + offset) + 16 * (g[i + 1] + offset) for i in range(0, len(g), 2)] for g in row]
        for row in integers
    ]
    return np.array(pairs, np.uint8)


@pytest.mark.parametrize(
    ("bits", "group_size"), [(8, 32), (8, 64), (8, 128), (8, 0), (4, 32), (4, 64), (4, 128)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales(shape: tuple[int, int], bits: int, group_size: int) -> None:
    weight = random(shape)
    packed = quantize(weight, bits, group_size)
    group_size = group_size or shape[1]
    integers, scales = plainly(weight.numpy(), bits, group_size)
    groups = -(-shape[1] // group_size)
    assert packed.codes.shape == (shape[0], groups, group_size * bits // 8)
    np.testing.assert_array_equal(packed.codes, as_bytes(integers, bits))
    np.testing.assert_array_equal(packed.scales.astype(np.float32), np.array(scales, np.float32))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_codes_times_scales(shape: tuple[int, int], bits: int) -> None:
    packed = quantize(random(shape), bits, 32)
    values = packed.values()
    integers, scales = plainly(random(shape).numpy(), bits, 32)
    wanted = np.array(integers, np.float32) * np.array(scales, np.float32)[..., None]
    np.testing.assert_array_equal(values, wanted.reshape(shape[0], -1)[:, : shape[1]])


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_are_exact_as_bfloat16_float16_and_float32(bits: int) -> None:
    weight = random((40, 256)) * torch.logspace(-12, 12, 40)[:, None]
    scales = quantize(weight, bits, 32).scales
    as_float = scales.astype(np.float32)
    assert not (as_float.view(np.uint32) & 0xFFFF).any()
    assert as_float.min() == SMALLEST_SCALE
    assert as_float.max() == LARGEST_SCALE
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_error_of_a_round_trip(bits: int) -> None:
    weight = random((64, 256), seed=1)
    packed = quantize(weight, bits, 32)
    scale = packed.scales.astype(np.float32).repeat(32, axis=1)
    error = np.abs(packed.values() - weight.numpy())
    largest = 2 ** (bits - 1) - 1
    inside = np.abs(weight.numpy()) <= largest * scale
    assert (error[inside] <= 0.5001 * scale[inside]).all()
    # A scale that bfloat16 rounded down, by 2⁻⁹ at most, clips its group's largest value.
    assert (error <= (0.5001 + largest / 512) * scale).all()


@pytest.mark.parametrize(("bits", "low", "high"), [(8, 1, 255), (4, 1, 15)])
def test_ranges_of_codes(bits: int, low: int, high: int) -> None:
    weight = random((256, 128), seed=2)
    codes = unpack(quantize(weight, bits, 32).codes, bits)
    assert (codes.min(), codes.max()) == (low, high)


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_zeros(bits: int) -> None:
    weight = random((3, 96))
    weight[1, 32:64] = 0
    packed = quantize(weight, bits, 32)
    assert packed.scales[1, 1] == np.float16(SMALLEST_SCALE)
    values = packed.values()
    assert not values[1, 32:64].any()
    assert values[1, :32].any()
    assert not quantize(torch.zeros(2, 32), bits, 32).values().any()


@pytest.mark.parametrize("bits", [8, 4])
def test_padding_stands_for_zeros(bits: int) -> None:
    codes = unpack(quantize(random((4, 33)), bits, 32).codes, bits).reshape(4, 64)
    assert (codes[:, 33:] == 2 ** (bits - 1)).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [1e-38, 1e-7, 65504.0, 1e30, 3.4e38])
def test_extreme_values_stay_finite_and_keep_their_sign(bits: int, value: float) -> None:
    weight = torch.full((1, 32), 0.0)
    weight[0, 0], weight[0, 1] = value, -value
    values = quantize(weight, bits, 32).values()
    assert np.isfinite(values).all()
    assert values[0, 0] >= 0 >= values[0, 1]
    assert not values[0, 2:].any()
    if 1 <= value <= 1e5:
        assert values[0, 0] == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_independent(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So matrices may be stacked, and worked on in slices."""
    a, b = random((5, 70), seed=3), random((3, 70), seed=4)
    both = quantize(torch.cat((a, b)), bits, 32)
    alone = [quantize(w, bits, 32) for w in (a, b)]
    np.testing.assert_array_equal(both.codes, np.concatenate([p.codes for p in alone]))
    np.testing.assert_array_equal(both.scales, np.concatenate([p.scales for p in alone]))
    monkeypatch.setattr("edgeloop.quant.pack._SLICE", 100)
    np.testing.assert_array_equal(both.codes, quantize(torch.cat((a, b)), bits, 32).codes)


def test_the_weight_is_left_as_it_was() -> None:
    weight = random((4, 64))
    before = weight.clone()
    quantize(weight, 4, 32)
    assert torch.equal(weight, before)
