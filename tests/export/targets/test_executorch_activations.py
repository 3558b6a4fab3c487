"""XNNPACK itself computes what the inputs that its kernels are said to see give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeloop.quant.pack import quantize
from edgeloop.runtime.model.activations import ACTIVATIONS

pytest.importorskip("executorch")
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.runtime import Runtime

from edgeloop.export.lower.xnnpack_weights import Matrix
from edgeloop.export.quiet import quiet
from edgeloop.export.targets.executorch.lower import XnnpackPartitioner


# Measured 1e-7 on the kernels of all x86-64, but in groups 1e-5 for 4096 columns on those of AVX-512 VNNI, which take
# zero away in float32. A single input that is rounded the other way gives 3e-4 or more.
@pytest.mark.parametrize(("bits", "group", "columns", "bound"), [(4, 32, 1024, 4e-5), (8, 0, 1024, 1e-6)])
def test_a_product(bits: int, group: int, columns: int, bound: float) -> None:
    random, made = np.random.default_rng(1), ACTIVATIONS["XNNPACK"]
    weight = quantize(torch.randn(48, columns, generator=torch.Generator().manual_seed(0)), bits, group)
    stored = {"m.codes": torch.from_numpy(weight.codes), "m.scales": torch.from_numpy(weight.scales)}
    with torch.no_grad(), quiet():
        program = torch.export.export(Matrix(stored, "m", bits).eval(), (torch.zeros(7, columns),))
        edge = to_edge_transform_and_lower(
            {"forward": program},
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
    data = bytes(edge.to_executorch().buffer)  # which the runtime reads from as long as the method lives
    loaded = Runtime.get().load_program(data)
    method = loaded.load_method("forward")
    x = random.standard_normal((7, columns)) * np.exp(random.standard_normal((7, columns))) + 0.3
    x[2] = 0
    x[3], x[4] = np.abs(x[3]), -np.abs(x[4])
    x = x.astype(np.float32)
    kept = made(x, group)
    x = (kept + np.float32(0.5) * (x - kept)).astype(np.float32)  # no value near the middle of two codes
    found = method.execute([torch.from_numpy(x)])[0].numpy()

    def far_from(inputs: np.ndarray) -> float:
        wanted = inputs.astype(np.float64) @ weight.values().T.astype(np.float64)
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    assert far_from(made(x, group)) < bound
    assert far_from(x) > 1e-3
