"""From canonical tensors to stored ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.numpy import load_file
from tiny import KINDS

from edgeloop.export.checkpoint import Checkpoint, folder
from edgeloop.export.families import read_checkpoint
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.family import Reading
from edgeloop.export.stored import write_weights
from edgeloop.export.weights import tensor_spans
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.facts import count_parameters
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.weights import Matrix, tensors

Readings = Callable[..., Reading]
Tiny = Callable[[str], Path]
QUANTS = [("none", 32), ("int8", 64), ("int8-channel", 32), ("int4", 32), ("int4", 128)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_canonical_tensor_is_stored_once(reading: Readings, kind: str) -> None:
    program = reading(kind).program
    stored = [part for _, tensor in tensors(program.weights) for part in tensor.parts]
    assert sorted(stored) == sorted(reading(kind).tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted(reading: Readings, kind: str) -> None:
    program, loaders = reading(kind).program, reading(kind).tensors
    unique, unrolled = count_parameters(program)
    assert unique == sum(load().numel() for load in loaders.values())
    layers = outside = 0
    for name, load in loaders.items():
        shape = load().shape
        if not name.startswith("segments."):
            looped = name == "norm.weight" and spec_of(program).loop_norm  # behind the layers of each depth
            outside += math.prod(shape) * (program.depths if looped else 1)
            continue
        segment = spec_of(program).segments[int(name.split(".")[1])]
        stacked = "lora" in name or ("norm" in name and segment.per_repeat_norms)
        stacked |= segment.per_repeat_attention and name.split(".")[4] in (
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
        )
        layers += math.prod(shape) * (1 if stacked else segment.repeats)
    assert unrolled == outside + layers


@pytest.mark.parametrize(("quant", "group_size"), QUANTS)
@pytest.mark.parametrize("kind", ["mor-lora", "ouro", "mobilellm"])
def test_the_runtime_reads_what_the_recipe_keeps(
    reading: Readings, stored_reading: Readings, tmp_path: Path, kind: str, quant: str, group_size: int
) -> None:
    path = tmp_path / "weights.safetensors"
    recipe = Recipe.named(quant, group_size)
    write_weights(reading(kind), recipe, path)
    program, found = reading(kind).program, load_file(path)
    weights = StoredWeights(program.weights, found, recipe.group_size)
    kept = stored_reading(kind, quant, group_size).tensors
    wanted = set()
    for name, tensor in tensors(program.weights):
        whole = np.concatenate([kept[part]().numpy() for part in tensor.parts])
        stem = name.removesuffix(".weight")
        if tensor.kind != "matrix":
            np.testing.assert_array_equal(weights.small(name), whole)
            wanted.add(name)
            continue
        np.testing.assert_array_equal(weights.rows(stem, np.arange(len(whole))), whole)
        wanted |= {name} if quant == "none" else {f"{stem}.codes", f"{stem}.scales"}
    assert set(found) == wanted


@pytest.mark.parametrize(("quant", "group_size"), QUANTS)
def test_tensors_lie_aligned(reading: Readings, tmp_path: Path, quant: str, group_size: int) -> None:
    """Odd sizes: 1 row of scales in the head of 97 rows would leave the next float on an odd address."""
    path = tmp_path / "weights.safetensors"
    write_weights(reading("relax_lora_middle_cycle"), Recipe.named(quant, group_size), path)
    tensors = load_file(path)
    for name, place in tensor_spans(path).items():
        assert place.offset % tensors[name].itemsize == 0


def test_deltas_that_float16_cannot_hold(reading: Readings, tmp_path: Path) -> None:
    name = "segments.1.layers.0.q_proj.lora_b"
    original = reading("mor-lora")
    huge = replace(original, tensors={**original.tensors, name: lambda: original.tensors[name]() + 1e6})
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_b has values up to 1e\+06.*use --quant none"):
        write_weights(huge, Recipe.named("int4", 32), tmp_path / "a")
    write_weights(huge, Recipe.named("none", 32), tmp_path / "b")


def test_one_tensor_at_a_time(reading: Readings, tmp_path: Path) -> None:
    """A loader is called when its tensor's turn comes, and once."""
    original, calls = reading("ouro"), []

    def loader(name: str) -> Callable[[], torch.Tensor]:
        def load() -> torch.Tensor:
            calls.append((name, path.stat().st_size if path.exists() else 0))
            return original.tensors[name]()

        return load

    path = tmp_path / "weights.safetensors"
    spied = replace(original, tensors={name: loader(name) for name in original.tensors})
    write_weights(spied, Recipe.named("int4", 32), path)
    assert sorted(name for name, _ in calls) == sorted(original.tensors)
    assert calls[-1][1] > path.stat().st_size // 2


@pytest.mark.parametrize(("quant", "group_size"), QUANTS)
@pytest.mark.parametrize("kind", ["llama", "ouro"])
def test_an_embedding_is_read_some_rows_at_a_time(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, quant: str, group_size: int
) -> None:
    """The same bytes, and no piece has more numbers than may be read at a time."""
    recipe, whole, most = Recipe.named(quant, group_size), [], 0
    source = Checkpoint.open(tiny(kind))
    for piece, name in ((1 << 30, "whole"), (1000, "pieces")):
        monkeypatch.setattr(folder, "_PIECE", piece)
        write_weights(read_checkpoint(source), recipe, tmp_path / name)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()

    def floats(self: Checkpoint, name: str, stored: torch.Tensor) -> torch.Tensor:
        nonlocal most
        whole.append(name)
        most = max(most, stored.numel() if "embed" in name else 0)
        return original(self, name, stored)

    original = Checkpoint._floats
    monkeypatch.setattr(Checkpoint, "_floats", floats)
    write_weights(read_checkpoint(source), recipe, tmp_path / "spied")
    assert 0 < most <= 1000
    assert whole.count("model.embed_tokens.weight") > 10


def test_matrices_and_biases_of_each_depth_are_under_each_other(reading: Readings, tmp_path: Path) -> None:
    original = reading("llama")
    weights = {"qv": Matrix({"q": 3, "v": 2}, 4, bias=True, copies=2)}
    q, v = torch.arange(24.0).reshape(2, 3, 4), torch.arange(16.0).reshape(2, 2, 4)
    given = {"q.weight": q, "v.weight": v, "q.bias": q[..., 0], "v.bias": v[..., 0]}
    made = replace(
        original,
        program=structs.replace(original.program, weights=weights),
        tensors={name: partial(torch.clone, tensor) for name, tensor in given.items()},
    )
    write_weights(made, Recipe.named("none", 32), tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    wanted = torch.cat([q[0], v[0], q[1], v[1]]).numpy()
    assert np.array_equal(stored["qv.weight"], wanted)
    assert np.array_equal(stored["qv.bias"], wanted[:, 0])
