"""A text that goes through a model layer by layer gives its matrices what a run gives them, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from editing import read
from layerwise_sums import layerwise_sums, run_sums

from edgeloop.export.layerwise import steps
from edgeloop.export.stored import write_weights
from edgeloop.export.sums import Sums
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.model.stored import map_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
DECODERS = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and not p.name.startswith("albert"))


def compare(folder: Path, tmp_path: Path) -> None:
    reading = read(folder)
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    program, stored = reading.program, map_tensors(tmp_path / "w")
    window = min(20, program.context_length)
    ids = np.random.default_rng(0).integers(0, program.vocab_size, 2 * window + 5)
    found, wanted = layerwise_sums(program, stored, ids, window), run_sums(program, stored, ids, window)
    assert found.keys() == wanted.keys()
    for key, total in wanted.items():
        # Attention adds in another order when it has the whole window at once.
        np.testing.assert_allclose(found[key], total, atol=2e-5 * np.abs(total).max(), err_msg=str(key))


@pytest.mark.parametrize("name", DECODERS)
def test_matrices_get_what_a_run_gives_them(name: str, tmp_path: Path) -> None:
    compare(FIXTURES / name, tmp_path)


@pytest.mark.parametrize("kind", ["edgeloop", "edgeloop-shared", "edgeloop-window", "mor-own-attention"])
def test_and_so_with_deltas_shared_keys_and_windows(
    kind: str, tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    compare(tiny_once(kind), tmp_path)


def test_each_matrix_begins_a_step(tiny_once: Callable[[str], Path]) -> None:
    program = read(tiny_once("edgeloop")).program
    way = steps(program)
    assert [(step.stage, step.depth) for step in way if step.first] == [
        ("prologue", 0),
        *((stage, depth) for depth in range(program.depths) for stage in ("block", "epilogue", "head")),
    ]
    assert all(len(step.matrices) == 1 for step in way if not step.first)


def test_sums_that_are_put_away_come_back(tmp_path: Path) -> None:
    x = {
        (name, 0): torch.randn(5, 8, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate("abc")
    }
    sums = Sums(tmp_path / "sum", 2 * 8 * 8 * 4)  # two of three
    for _ in range(2):
        for key, rows in x.items():
            with sums.met():
                sums.add(key, rows, rows)
    assert len(list(tmp_path.iterdir())) == 1
    for key, rows in x.items():
        found = sums.take(key)
        assert found is not None
        torch.testing.assert_close(found, 2 * rows.T @ rows)
        assert sums.take(key) is None
    assert not list(tmp_path.iterdir())
