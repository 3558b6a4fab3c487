"""HRM-Text: several slow cycles against transformers, pipelined too; its schedule and states; and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from family_runs import decoded
from transformers import HrmTextConfig, HrmTextForCausalLM

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.facts import stored_layers

BOUND = 5e-5  # of logits up to 12


@pytest.fixture
def copy(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder / "hrm_text_h1l4_noprefix", tmp_path / "model"))


def test_two_slow_cycles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As transformers computes it without token types; pipelined, depths of two blocks meet in a call."""
    torch.manual_seed(0)
    model = HrmTextForCausalLM(
        HrmTextConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
            max_position_embeddings=64, initializer_range=0.2, H_cycles=2, L_cycles=2, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.model.z_L_init.normal_()
    model.save_pretrained(tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 60, 20)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids[None])).logits[0].numpy()
    export_bundle(tmp_path / "model", tmp_path / "bundle", quant="none")
    assert "prefix_lm is true, and prompts are read causally" in caplog.text
    for engine in ("reference", "onnx"):
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            assert session.program.loop.schedule == (0, 0, 1, 0, 0, 1)
            assert stored_layers(session.program) == 4
            assert np.abs(session.logits(ids) - wanted).max() <= BOUND
            assert np.abs(decoded(session.backend, ids) - wanted).max() <= BOUND
            plain = [step.token for step in session.generate(ids.tolist(), max_tokens=8)]
        with Session.open(tmp_path / "bundle", engine=engine, decode="pipelined") as session:
            assert [step.token for step in session.generate(ids.tolist(), max_tokens=8)] == plain


def test_embedding_scale_of_initializer_range(copy: Path) -> None:
    edit(copy / "config.json", embedding_scale=None, initializer_range=0.05)
    assert [op.scale for op in read(copy).program.prologue.ops if hasattr(op, "table")] == [20.0]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"H_cycles": None}, "has no H_cycles; wanted a positive integer"),
    ({"L_cycles": 0}, "L_cycles is 0"),
    ({"H_cycles": 400}, "H_cycles 400, L_cycles 4, .* stacks of 2 layers"),
    ({"num_layers_per_stack": 3}, "num_layers_per_stack 3, .* stacks of 2 layers"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"prefix_lm": "yes"}, "prefix_lm is 'yes'; wanted true or false"),
    ({"head_dim": 16}, "gqkv_proj.weight has shape"),
    ({"halt_max_steps": 4, "act_layers": 2}, "act_layers is 2, and this family does not know the key"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(copy)
    assert "\n" not in str(caught.value)


def test_a_norm_with_weights_is_refused(copy: Path) -> None:
    edit_weights(copy, lambda t: t.update({"model.H_module.layers.0.norm.weight": torch.ones(32)}))
    with pytest.raises(
        CheckpointError, match=r"H_module\.layers\.0\.norm\.weight is part of a layer and not"
    ):
        read(copy)
