"""The parts of a layer, each against a plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeloop.export.fused import Numerics, add_rms_norm, halves, rms_norm
from edgeloop.export.modules import Depth, LoraPair, Matrix, Norm, Table, apply_deltas
from edgeloop.quant.pack import quantize

RANDOM = torch.Generator().manual_seed(0)
DEPTHS = torch.tensor([2, 0, 1, 2])


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("columns", [64, 50])
def test_a_matrix_multiplies_and_a_table_looks_up(bits: int, columns: int) -> None:
    table, weights = noise(10, columns), {}
    if bits == 32:
        weights = {"m.weight": table}
    else:
        packed = quantize(table, bits, 32)
        weights = {"m.codes": torch.from_numpy(packed.codes), "m.scales": torch.from_numpy(packed.scales)}
        table = torch.from_numpy(packed.values().copy())
    numerics = Numerics(bits, 32, 1)
    x, ids = noise(2, 3, columns), torch.tensor([[3, 3, 9], [0, 1, 2]])
    torch.testing.assert_close(Matrix(weights, "m", numerics)(x), x @ table.T)
    assert torch.equal(Table(weights, "m", numerics, columns)(ids), table[ids])


def test_norms() -> None:
    x, residual, weight = noise(4, 3, 16), noise(4, 3, 16), noise(3, 16)
    total = x + residual
    plain = total / (total.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    norm, per_depth = Norm(weight[0], 1e-5), Norm(weight, 1e-5)
    torch.testing.assert_close(norm(total, Depth(1)), plain * weight[0])
    torch.testing.assert_close(per_depth(total, Depth(1)), plain * weight[1])
    torch.testing.assert_close(per_depth(total, Depth(DEPTHS)), plain * weight[DEPTHS][:, None])
    for n, d, w in [
        (norm, Depth(0), weight[0]),
        (per_depth, Depth(2), weight[2]),
        (per_depth, Depth(DEPTHS), weight[DEPTHS][:, None]),
    ]:
        normed, added = n.add(x, residual, d)
        torch.testing.assert_close(normed, plain * w)
        assert torch.equal(added, total)


def test_fused_operators_without_a_graph() -> None:
    x, gamma = noise(2, 3, 8), noise(8)
    normed, total = add_rms_norm(x, x, gamma, 1e-6)
    assert torch.equal(total, 2 * x)
    assert torch.equal(normed, rms_norm(2 * x, gamma, 1e-6))
    assert torch.equal(torch.cat(halves(x), -1), x)


def pair(ranks: int, width: int, out: int) -> LoraPair:
    return LoraPair({"p.lora_a": noise(3, ranks, width), "p.lora_b": noise(3, out, ranks)}, "p")


def expected(x: Tensor, parts: list[tuple[nn.Module | None, int]], depth: int) -> Tensor:
    """x [S, in] → [S, Σ out], part by part."""
    columns = []
    for holder, size in parts:
        if holder is None:
            columns.append(torch.zeros(len(x), size))
        else:
            a, b = holder.get_buffer("lora_a")[depth], holder.get_buffer("lora_b")[depth]
            columns.append(x @ a.T @ b.T)
    return torch.cat(columns, -1)


@pytest.mark.parametrize(
    "parts",
    [
        [(pair(2, 16, 24), 24)],
        [(pair(2, 16, 8), 8), (pair(5, 16, 4), 4), (pair(1, 16, 4), 4)],
        [(None, 8), (pair(3, 16, 4), 4), (None, 4)],
        [(pair(3, 16, 8), 8), (None, 4), (pair(2, 16, 4), 4)],
    ],
    ids=["one", "ranks-differ", "middle", "edges"],
)
def test_deltas(parts: list[tuple[nn.Module | None, int]]) -> None:
    x = noise(4, 3, 16)
    by_lane = apply_deltas(x, parts, Depth(DEPTHS))
    for lane, depth in enumerate(DEPTHS.tolist()):
        torch.testing.assert_close(by_lane[lane], expected(x[lane], parts, depth), rtol=1e-4, atol=1e-4)
        alone = apply_deltas(x[lane : lane + 1], parts, Depth(depth))[0]
        torch.testing.assert_close(alone, expected(x[lane], parts, depth), rtol=1e-4, atol=1e-4)


def test_float16_stacks_are_computed_in_float32() -> None:
    holder, x = pair(2, 16, 8).half(), noise(1, 2, 16)
    found = apply_deltas(x, [(holder, 8)], Depth(1))
    assert found.dtype == torch.float32
    assert torch.equal(found, apply_deltas(x, [(holder.float(), 8)], Depth(1)))


def test_masks_are_made_once_a_call() -> None:
    depth = Depth(DEPTHS)
    first = depth.mask((0, 0, 1, 2))
    assert first is depth.mask((0, 0, 1, 2))
    assert first.squeeze(1).tolist() == [[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
