"""Nanbeige: how often its stack runs, and the flags that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from editing import edit, read

from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.facts import LayerRun, runs
from edgeloop.runtime.model.ops import Norm


@pytest.fixture
def copy(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder / "nanbeige_loops2", tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"num_loops": 3}, 3),
        ({"num_loops": 1}, 1),
        ({"num_loops": None, "loop_loss_weights": [0.1, 0.2]}, 3),
        ({"num_loops": 7, "loop_loss_weights": [0.1]}, 2),
        ({"loop_loss_weights": None}, 2),
    ],
)
def test_how_often_the_stack_runs(copy: Path, change: dict[str, Any], times: int) -> None:
    edit(copy / "config.json", **change)
    program = read(copy).program
    assert program.depths == times
    assert runs(program) == [LayerRun(3, times)]


def test_a_warning_where_the_two_counts_differ(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(copy / "config.json", num_loops=7, loop_loss_weights=[0.1])
    read(copy)
    assert "num_loops is 7, and the authors' code goes by the 1 loop_loss_weights" in caplog.text


def test_one_norm_at_the_end(copy: Path) -> None:
    """skip_loop_final_norm: the norm is the head's, and its input is what feeds the next loop."""
    edit(copy / "config.json", skip_loop_final_norm=True)
    program = read(copy).program
    assert [op for op in program.head.ops if isinstance(op, Norm)]
    assert not any(isinstance(op, Norm) and op.weight == "norm" for op in program.loop.blocks[0].ops)


def test_no_count_is_an_error_and_never_one(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["num_loops"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no num_loops; wanted a positive integer"):
        read(copy)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"enable_double_loop_split": True}, "enable_double_loop_split is True, which is not supported"),
    ({"loop_share_kv": True}, "loop_share_kv is True, which is not supported"),
    ({"enable_hyper_connection": True}, "enable_hyper_connection is True"),
    ({"enable_mhc": True}, "enable_mhc is True"),
    ({"enable_h_res_identity": True}, "enable_h_res_identity is True"),
    ({"enable_depth_attention": True}, "enable_depth_attention is True"),
    ({"emb_neighbor_num": 2}, "emb_neighbor_num is 2"),
    ({"emb_split_num": 2}, "emb_split_num is 2"),
    ({"insert_ngram_layer_idx": [1]}, r"insert_ngram_layer_idx is \[1\]"),
    ({"ngram_insert_all_layers": True}, "ngram_insert_all_layers is True"),
    ({"enable_loop_gates": True}, "enable_loop_gates is True, and this family does not know the key"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
    ({"num_loops": 0}, "num_loops is 0"),
    ({"num_loops": 900}, "3 × 900 loops"),
    ({"loop_loss_weights": 0.3}, "loop_loss_weights is 0.3; wanted a list"),
    ({"num_hidden_layers": 4}, "num_hidden_layers 4 .* the weights have 3 layers"),
    ({"attention_bias": True}, r"no tensor .*q_proj\.bias"),
    ({"qk_layernorm": True}, r"no tensor .*q_layernorm\.weight"),
    ({"skip_loop_final_norm": "no"}, "skip_loop_final_norm is 'no'"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(copy)
    assert "\n" not in str(caught.value)


def test_parts_that_config_json_does_not_have(parity_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parity_folder / "nanbeige_losswts_qknorm_bias", tmp_path / "model"))
    edit(folder / "config.json", qk_layernorm=False)
    with pytest.raises(CheckpointError, match=r"k_layernorm\.weight is part of a layer and not understood"):
        read(folder)


def test_loop_split(copy: Path) -> None:
    """The authors' own config with LoopSplit on, whose weights are Llama's four layers."""
    edit(copy / "config.json", enable_double_loop_split=True, loop_middle_layers=2, loop_share_kv=True)
    with pytest.raises(
        CheckpointError, match="enable_double_loop_split is True, which is not supported; wanted"
    ):
        read(copy)
