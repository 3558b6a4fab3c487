"""A text that goes through a model layer by layer gives its matrices what a run gives them, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from editing import read
from layerwise_sums import layerwise_sums, run_sums

from edgeloop.export.heads import load_heads
from edgeloop.export.layerwise import steps
from edgeloop.export.stored import write_weights
from edgeloop.export.sums import Sums
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.model.stored import map_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
DECODERS = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and not p.name.startswith("albert"))


def compare(folder: Path, tmp_path: Path, routed: bool = False) -> None:
    reading = read(folder)
    heads = {name: head.numpy() for name, head in load_heads(reading).items()} if routed else {}
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    program, stored = reading.program, map_tensors(tmp_path / "w")
    window = min(20, program.context_length)
    ids = np.random.default_rng(0).integers(0, program.vocab_size, 2 * window + 5)
    found, wanted = (sums(program, stored, ids, window, heads) for sums in (layerwise_sums, run_sums))
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


@pytest.mark.parametrize("kind", ["mor-expert", "mor-expert-auxiliary", "mor-token", "mor-token-mlp"])
def test_and_so_where_a_router_decides(kind: str, tiny_once: Callable[[str], Path], tmp_path: Path) -> None:
    """Of the tokens that it sends to each depth: the run has its router from ``runtime/decode/``."""
    compare(tiny_once(kind), tmp_path, routed=True)


@pytest.mark.parametrize("kind", ["mor-expert-shared", "mor-token-shared"])
def test_routers_over_shared_keys(kind: str, tiny_once: Callable[[str], Path], tmp_path: Path) -> None:
    """All tokens make K/V there, and what follows the loop is as in a run; chosen ones alone count in the loop."""
    reading = read(tiny_once(kind))
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    program, stored = reading.program, map_tensors(tmp_path / "w")
    heads = {name: head.numpy() for name, head in load_heads(reading).items()}
    ids = np.random.default_rng(0).integers(0, program.vocab_size, 45)
    found, wanted = (sums(program, stored, ids, 20, heads) for sums in (layerwise_sums, run_sums))
    everywhere = layerwise_sums(program, stored, ids, 20)
    after = {key for key in found if key[0].startswith("segments.2.") or key[0] == "embed"}
    assert after
    for key in after:
        np.testing.assert_allclose(found[key], wanted[key], atol=2e-5 * np.abs(wanted[key]).max())
    (block,) = {key for key in found if key[0] == "segments.1.layers.0.o_proj"}
    assert np.trace(found[block]) > 0
    assert np.trace(found[block]) < np.trace(everywhere[block])


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
