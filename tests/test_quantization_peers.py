"""tests/quantization_peers.py knows every matrix of the demo, and what a peer makes of one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from editing import read
from ops_table import parts
from quantization_peers import PAGE, PEERS, canonical, table
from quantization_table import MODELS
from safetensors import safe_open

from edgeloop.runtime.model.weights import Matrix, sibling


def test_the_page_has_rows_of_peers() -> None:
    found = parts(PAGE.read_text(encoding="utf-8"), "quantization_peers.py")[1]
    names = re.findall(r"(?m)^\| ([^|]+?) \|", found)[2:]
    assert names == [name for name in PEERS if name in names]


def test_every_matrix_of_the_demo_is_quantized_once() -> None:
    with safe_open(MODELS["demo"] / "model.safetensors", "numpy") as file:
        names = [canonical(name) for name in file.keys()]  # noqa: SIM118 - no dict
    wanted = [
        sibling(name, part)
        for name, weight in read(MODELS["demo"]).program.weights.items()
        if isinstance(weight, Matrix)
        for part in weight.parts
    ]
    assert sorted(filter(None, names)) == sorted(wanted)


@pytest.mark.parametrize("name", [name for name in PEERS if not name.startswith("llama.cpp")])
def test_values_are_of_sixteen_levels_a_group(name: str) -> None:
    group = int(name.split()[-1])
    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    values, stored = PEERS[name](weight, np.ones(256, np.float32))
    assert values.shape == weight.shape
    assert {len(np.unique(block)) <= 16 for block in values.reshape(-1, group)} == {True}
    assert np.square(values - weight).mean() < 0.02
    assert 4 < 8 * stored / weight.size <= 6


def test_a_row_says_what_was_found() -> None:
    found = {
        "bits_a_matrix_weight": 4.5,
        "change_per_depth": [0.01, 0.02],
        "change_interval_per_depth": [[0.005, 0.015], [0.01, 0.03]],
        "divergence_per_depth": [0.001, 0.002],
        "drafts_per_depth": [-0.01, 0.0],
        "drafts_interval_per_depth": [None, None],
    }
    last = table({"any": found}).splitlines()[-1]
    assert last == "| any | 4.50 | +1.00 ± 0.50 | +2.00 ± 1.00 | 1.00, 2.00 | -1.00 |"
