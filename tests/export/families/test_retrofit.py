"""Models made recurrent: how they are told from Huginn, where their loop starts, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights, read
from safetensors.torch import load_file

from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.ops import Concat, Scale


@pytest.fixture
def copy(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder / "retrofit_llama32", tmp_path / "model"))


def test_heads_of_a_fused_matrix(copy: Path) -> None:
    """Four heads of q, two of k, two of v, 12 rows each."""
    stored = load_file(copy / "model.safetensors")["transformer.core_block.1.attn.Wqkv.weight"]
    tensors = read(copy).tensors
    for part, rows in (("q", slice(48)), ("k", slice(48, 72)), ("v", slice(72, 96))):
        assert torch.equal(tensors[f"core_block.1.{part}_proj.weight"](), stored[rows])


@pytest.mark.parametrize(
    ("start", "zeros", "adapters"),
    [("random", 1, [1]), ("embed-init", 0, [1]), ("skip-adapter", 0, [0, 1]), (None, 1, [1])],
)
def test_where_the_loop_starts(copy: Path, start: str | None, zeros: int, adapters: list[int]) -> None:
    edit(copy / "config.json", initial_state_mode=start)
    program = read(copy).program
    assert sum(isinstance(op, Scale) for op in program.prologue.ops) == zeros
    assert [sum(isinstance(op, Concat) for op in b.ops) for b in program.loop.blocks] == adapters
    assert program.loop.schedule == (0, *[len(adapters) - 1] * 7)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"initial_state_mode": "learned"},
        "initial_state_mode is 'learned'; wanted one of random, skip-adapter",
    ),
    ({"qk_bias": True}, "qk_bias is True, which is not supported"),
    ({"rope_theta": 1e4}, "rope_theta and rope_base differ"),
    ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of num_key_value_heads 3"),
    ({"init_values": None}, "init_values is None; wanted an object with embed_scale"),
    ({"init_values": {}}, "embed_scale is None; wanted a positive number"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type is 'dynamic'"),
    ({"mean_recurrence": 5000}, "5000 depths"),
    ({"head_dim": 16}, "Wqkv.weight has shape"),
    ({"state_init": "embed"}, "state_init is 'embed'"),
    ({"use_fused_attn": True}, "use_fused_attn is True, and this family does not know the key"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(copy)
    assert "\n" not in str(caught.value)


def test_layers_of_huginn_are_not_these(copy: Path) -> None:
    """With four norms a layer it is read as Huginn, whose heads have K and V each."""
    edit_weights(copy, lambda t: t.update({"transformer.core_block.0.norm_4.weight": torch.ones(48)}))
    gone = dict.fromkeys(("max_position_embeddings", "rope_scaling", "rope_theta", "initial_state_mode"))
    edit(copy / "config.json", **gone)
    with pytest.raises(CheckpointError, match="num_key_value_heads is 2, which is not supported; wanted 4"):
        read(copy)
