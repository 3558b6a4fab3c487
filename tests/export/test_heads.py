"""Heads of the host: their own file, float32, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from editing import read
from safetensors.torch import load_file
from tiny import ROUTERS

from edgeloop.export.heads import count_heads, write_heads
from edgeloop.runtime.bundle.heads import HEADS, check_heads, head_shapes
from edgeloop.runtime.errors import CheckpointError

SIZES = {
    "mor-middle-cycle": 0,
    "mor-expert": 3 * 64,
    "mor-token": 3 * 64 + 3,
    "edgeloop-routed": 3 * 64,
    "ouro": 64 + 1,
    "mor-expert-mlp": 2 * 3 * (128 * 64 + 128),
    "mor-expert-auxiliary": 2 * 3 * 64,
    "mor-token-mlp": 128 * 64 + 3 * 128 + 3,
    "mor-expert-shared": 3 * 64,
    "mor-token-shared": 3 * 64 + 3,
}


@pytest.mark.parametrize("kind", SIZES)
def test_heads_are_written(tiny_once: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    reading = read(tiny_once(kind))
    assert count_heads(reading) == SIZES[kind]
    assert write_heads(reading, tmp_path) == (HEADS if SIZES[kind] else None)
    assert [p.name for p in tmp_path.iterdir()] == ([HEADS] if SIZES[kind] else [])
    if SIZES[kind]:
        written = load_file(tmp_path / HEADS)
        assert written.keys() == reading.heads.keys()
        assert all(torch.equal(written[name], load()) for name, load in reading.heads.items())
        arrays = {name: tensor.numpy() for name, tensor in written.items()}
        check_heads(arrays, head_shapes(reading.program), "here")


def test_every_router_is_measured() -> None:
    assert set(ROUTERS) <= set(SIZES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("router.weight", torch.ones(2, 64), "router.weight is 2×64, wanted 3×64"),
        ("router.weight", torch.ones(3), "router.weight is 3, wanted 3×64"),
        ("router.bias", torch.tensor([0.0, torch.nan, 0.0]), "router.bias holds NaN or infinite values"),
        ("router.bias", None, "has no router.bias"),
    ],
)
def test_heads_that_are_refused(
    tiny_once: Callable[[str], Path], tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    reading = read(tiny_once("mor-token"))
    heads = {key: load for key, load in reading.heads.items() if key != name}
    if tensor is not None:
        heads[name] = lambda: tensor
    with pytest.raises(CheckpointError, match=message) as caught:
        write_heads(replace(reading, heads=heads), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
