"""What the families do not understand is refused by name, never passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights, read

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, unused
from edgeloop.runtime.errors import CheckpointError

CONFIG_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling\.rope_type"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"rope_parameters\.rope_type"),
    ({"rope_theta": 5e5}, "differ"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 128}, "sliding_window"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"num_loops": 2}, "num_loops"),
    ({"mean_recurrence": 4}, "mean_recurrence"),
    ({"layer_sharing": "yes"}, "layer_sharing"),
    ({"early_exit_threshold": 0.5}, "early_exit_threshold"),
    ({"enable_depth_attention": True}, "enable_depth_attention"),
    ({"mor": {"enable": True}}, "mor is"),
    ({"layer_types": ["sliding_attention"] * 6}, "layer_types"),
    ({"layer_types": 3}, "layer_types"),
    ({"hidden_size": 63}, "hidden_size|shape"),
    ({"hidden_size": "64"}, "hidden_size is '64'"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 8}, r"q_proj\.weight has shape"),
    ({"num_key_value_heads": 3}, "no multiple"),
    ({"head_dim": 15}, "odd"),
    ({"vocab_size": None}, "no vocab_size"),
    ({"vocab_size": 10**12}, "vocab_size is"),
    ({"vocab_size": 400}, r"embed_tokens\.weight has shape"),
    ({"num_hidden_layers": 7}, "num_hidden_layers 7"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"eos_token_id": [1, 999]}, "eos_token_id"),
    ({"tie_word_embeddings": False}, r"lm_head\.weight"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"model_type": "gpt2"}, "no family reads model_type 'gpt2'"),
    ({"architectures": ["MoRLlamaForCausalLM"]}, "MoRLlamaForCausalLM.*conf.yaml"),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_REFUSALS)
def test_config_keys_that_are_refused(
    tiny: Callable[[str], Path], change: dict[str, Any], message: str
) -> None:
    folder = tiny("llama")
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_config_keys_that_change_nothing(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")
    harmless = {
        "use_sliding_window": False,
        "sliding_window": 64,
        "layer_sharing": False,
        "pretraining_tp": 1,
    }
    edit(folder / "config.json", eos_token_id=[1, 2], rope_scaling=None, head_dim=None, **harmless)
    assert read(folder).spec.eos_token_ids == (1, 2)


TRAINING_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"mor__enable": True}, r"mor\.enable"),
    ({"relaxation__enable": True, "relaxation__method": "dora"}, "method is 'dora'"),
    ({"relaxation__enable": True, "relaxation__method": "recursion_encoding"}, "recursion_encoding"),
    ({"relaxation__enable": True, "relaxation__twist": 1}, r"relaxation\.twist"),
    ({"relaxation__enable": "on"}, "enable is 'on'"),
    ({"recursive__sharing": "spiral"}, "sharing is 'spiral'"),
    ({"recursive__sharing": "middle_sequence"}, "ought to be shared, and differ"),
    ({"recursive__num_recursion": 4}, "not this checkpoint's"),
    ({"recursive__num_recursion": 1}, "nothing is repeated"),
    ({"recursive__wobble": 1}, r"recursive\.wobble"),
    ({"early_exit": {"enable": True}}, "early_exit"),
    ({"recursive": {"enable": True}}, "num_recursion"),
]


@pytest.mark.parametrize(("change", "message"), TRAINING_REFUSALS)
def test_conf_yaml_that_is_refused(tiny: Callable[[str], Path], change: dict[str, Any], message: str) -> None:
    folder = tiny("mor-middle-cycle")
    edit(folder / "conf.yaml", **change)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"]
)
def test_shared_by_conf_yaml_but_different(tiny: Callable[[str], Path], name: str) -> None:
    folder = tiny("mor-middle-cycle")
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name] * 1.01}))
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert name in str(caught.value)
    assert name.replace("layers.3", "layers.1") in str(caught.value)


def test_nothing_repeats(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")

    def untie(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(6):
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"] += layer

    edit_weights(folder, untie)
    with pytest.raises(CheckpointError, match="none of its 6 layers repeats"):
        read(folder)


WEIGHT_REFUSALS: list[tuple[str, str | None, str]] = [
    (
        "model.layers.2.self_attn.k_proj.weight",
        None,
        r"no tensor model\.layers\.2\.self_attn\.k_proj\.weight",
    ),
    ("model.norm.weight", None, r"no tensor model\.norm\.weight"),
    ("model.embed_tokens.weight", None, "embed_tokens"),
    ("model.layers.1.self_attn.q_proj.bias", "add", r"q_proj\.bias is part of a layer"),
    ("model.layers.1.self_attn.q_norm.weight", "add", "q_norm"),
    ("model.layers.9.mlp.up_proj.weight", "add", "without gaps"),
    ("model.layers.1.self_attn.q_proj.lora_A.default.weight", "add", "scale is nowhere"),
]


@pytest.mark.parametrize(("name", "how", "message"), WEIGHT_REFUSALS)
def test_weights_that_are_refused(
    tiny: Callable[[str], Path], name: str, how: str | None, message: str
) -> None:
    folder = tiny("llama")
    edit_weights(folder, lambda t: t.update({name: torch.ones(4, 64)}) if how else t.pop(name))
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_rotary_buffers_are_passed_over(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(8)}))
    checkpoint = Checkpoint.open(folder)
    assert unused(checkpoint, find_family(checkpoint).read(checkpoint)) == []


def test_unknown_key_of_the_demo_config(tiny: Callable[[str], Path]) -> None:
    folder = tiny("edgeloop")
    edit(folder / "config.json", num_recursion=3)
    with pytest.raises(CheckpointError, match="unknown key num_recursion"):
        read(folder)


def test_demo_config_that_does_not_fit_its_weights(tiny: Callable[[str], Path]) -> None:
    folder = tiny("edgeloop")
    edit(folder / "config.json", lora_rank=0)
    with pytest.raises(CheckpointError, match=r"lora_a is part of a layer"):
        read(folder)
