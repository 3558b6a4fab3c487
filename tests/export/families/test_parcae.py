"""Parcae: what its numbers become, models of other sizes in the loop, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.ops import Embed, Norm, Softcap
from edgeloop.runtime.session import Session


@pytest.fixture
def copy(parity_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_folder / "parcae_diag", tmp_path / "model"))


def test_decay_and_injection(copy: Path) -> None:
    """As the state decays and takes in, written out in float64."""
    stored = torch.load(copy / "pytorch_model.bin", weights_only=True)
    step = np.log1p(np.exp(stored["transformer.adapter.dt_bias"].double().numpy()))
    decay = np.exp(-step * np.exp(stored["transformer.adapter.A_log"].double().numpy()))
    tensors = read(copy).tensors
    np.testing.assert_allclose(tensors["decay.weight"]().numpy(), decay, rtol=1e-5)
    np.testing.assert_allclose(tensors["injection_scale.weight"]().numpy(), step, rtol=1e-5)
    half = stored["transformer.core_block.1.mlp.proj.weight"] / 2
    assert torch.equal(tensors["core_block.1.down_proj.weight"](), half)


def test_which_layers_have_values_of_the_token(copy: Path) -> None:
    """Those with a gate and an embedding; an embedding or a gate alone changes nothing."""
    carries = [carry.name for carry in read(copy).program.loop.carries]
    assert carries == ["state", "injected", "value_1", "value_3"]
    edit_weights(copy, lambda t: t.update({"value_embeds.0.weight": torch.ones(128, 32)}))
    edit_weights(
        copy, lambda t: t.update({"transformer.core_block.1.attn.ve_gate.weight": torch.ones(4, 32)})
    )
    assert len(read(copy).program.loop.carries) == 4
    edit_weights(copy, lambda t: t.pop("value_embeds.3.weight"))
    found = read(copy)
    assert not list(problems(found.program))
    assert [carry.name for carry in found.program.loop.carries] == ["state", "injected", "value_1"]


def test_a_wider_state_and_capped_logits(copy: Path, tmp_path: Path) -> None:
    """A loop of another width than the layers around it, whose gates read 32 of its 48 dims."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(3)
        for name in [
            n for n in tensors if ".core_block." in n or ".adapter." in n or n.endswith(".C.weight")
        ]:
            shape = list(tensors[name].shape)
            if name.endswith("ve_gate.weight"):
                shape = [6, 32]
            elif name.endswith("C.weight"):
                shape = [32, 48]
            elif name.endswith("adapter.B"):
                shape = [48, 32]
            else:
                shape = [48 if size == 32 else size for size in shape]
            tensors[name] = torch.randn(shape) * 0.3 + ("norm" in name)
        tensors["value_embeds.1.weight"] = torch.randn(128, 48)
        del tensors["transformer.ln_prelude.weight"]

    edit_weights(copy, change)
    edit(
        copy / "config.json",
        recurrent_embedding_dimension=48,
        recurrent_num_attention_heads=6,
        logit_softcap=3.0,
        prelude_norm=False,
    )
    reading = read(copy)
    assert not list(problems(reading.program))
    assert [op.cap for op in reading.program.head.ops if isinstance(op, Softcap)] == [3.0]
    assert [op.y for op in reading.program.prologue.ops if isinstance(op, Embed)] == [
        "embedded",
        "value_1",
        "value_3",
    ]
    export_bundle(copy, tmp_path / "bundle", quant="none")  # which holds the graphs to the reference engine
    with Session.open(tmp_path / "bundle", engine="onnx") as session:
        assert np.abs(session.logits(np.arange(12))).max() < 3.0


def test_without_norms_of_heads(copy: Path) -> None:
    edit(copy / "config.json", qk_norm=False)
    block = read(copy).program.loop.blocks[0]
    assert not any(isinstance(op, Norm) and op.weight is None for op in block.ops)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"init_strategy": "takase"}, "init_strategy is 'takase', which is not supported; wanted \"scaled-zero\""),
    ({"init_strategy": None}, "init_strategy is None|has no init_strategy"),
    ({"injection_type": "linear"}, "injection_type is 'linear'"),
    ({"mlp_class_name": "GatedMLP"}, "mlp_class_name is 'GatedMLP'"),
    ({"nonlin_name": "SiLU"}, "nonlin_name is 'SiLU'"),
    ({"block_class_name": "SandwichBlock"}, "block_class_name is 'SandwichBlock'"),
    ({"state_init": "like-init"}, "state_init is 'like-init'"),
    ({"qk_bias": True}, "qk_bias is True"),
    ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    ({"rope_settings": {"use_rope": False, "rope_base": 50000}}, "rope_settings: use_rope is False"),
    ({"rope_settings": {"use_rope": True, "rope_base": 50000, "rope_condense_ratio": 2}}, "rope_condense_ratio is 2"),
    ({"rope_settings": None}, "rope_settings is None; wanted an object"),
    ({"rope_settings": {"use_rope": True, "rope_base": 500}}, "holds other rotations than those of rope_base 500"),
    ({"num_attention_heads": 5}, "a width of 32 with 5 heads"),
    ({"mean_recurrence": None}, "has no mean_recurrence"),
    ({"n_layers_in_coda": 2}, r"coda\.1"),
    ({"gate_kind": "x"}, "gate_kind is 'x', and this family does not know the key"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(copy)
    assert "\n" not in str(caught.value)
