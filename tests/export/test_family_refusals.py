"""What the families do not understand is refused by name, never passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights, read
from forward import AUTHORS
from tiny import KINDS

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, unused
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.facts import LayerRun, runs

FIXTURES = (*AUTHORS, "mor_expert_middle_cycle_eager", "mor_token_middle_cycle")

CONFIG_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias is True, .* wanted null or false, or no such key"),
    ({"mlp_bias": True}, "mlp_bias"),
    (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        "'llama3', and there is no low_freq_factor beside it",
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "'yarn', and there is no factor beside it",
    ),
    (
        {"rope_parameters": {"type": "dynamic", "factor": 2.0}},
        r"rope_parameters\.type is 'dynamic', a rule that is not",
    ),
    (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
        "is 'longrope', a rule that is not",
    ),
    (
        {"rope_parameters": {"type": "linear", "factor": 2.0, "beta_fast": 4}},
        "which rope_type linear does not have",
    ),
    (
        {"rope_parameters": {"type": "yarn", "factor": 2.0, "truncate": False}},
        r"rope_parameters\.truncate is False",
    ),
    ({"rope_parameters": {"factor": 2.0}}, "which rope_type default does not have"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        r"rope_parameters\.rope_type and rope_scaling\.type differ",
    ),
    ({"rope_theta": 5e5}, "differ"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 8, "use_sliding_window": 1}, "use_sliding_window is 1"),
    ({"layer_types": ["linear_attention"] * 6}, "layer_types is"),
    ({"clip_qkv": 8.0}, "clip_qkv is 8.0, and this family does not know the key"),
    ({"norm_type": "layer_norm"}, "norm_type"),
    ({"qk_layernorm": True}, "qk_layernorm"),
    ({"attention_sinks": 4}, "attention_sinks"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
    ({"embedding_multiplier": 12}, "embedding_multiplier"),
    ({"num_local_experts": 8}, "num_local_experts"),
    ({"no_rope_layers": [0, 1]}, "no_rope_layers"),
    ({"mup_base_width": 256}, "mup_base_width"),
    ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"quantization": {"bits": 4, "group_size": 64}}, "quantization"),
    ({"attention_window": 8}, "attention_window"),
    ({"quantization_config": {"bits": 4}}, "quantization_config .* wanted null, or no such key"),
    ({"num_loops": 2}, "num_loops"),
    ({"mean_recurrence": 4}, "mean_recurrence"),
    ({"layer_sharing": "yes"}, "layer_sharing"),
    ({"early_exit_threshold": 0.5}, "early_exit_threshold"),
    ({"enable_depth_attention": True}, "enable_depth_attention"),
    ({"mor": {"enable": True}}, "mor is"),
    ({"layer_types": 3}, "layer_types"),
    ({"hidden_size": 63}, "hidden_size|shape"),
    ({"hidden_size": "64"}, "hidden_size is '64'"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 8}, r"q_proj\.weight has shape"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
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
    (
        {"model_type": None, "error": "Repository not found"},
        "is an answer of a server .*Repository not found",
    ),
    ({"model_type": ["llama"]}, r"no family reads model_type \['llama'\]"),
    ({"model_type": {"llama": 1}}, "no family reads model_type"),
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


WINDOW_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("llama-window", {"sliding_window": 0}, "sliding_window is 0"),
    ("llama-window", {"sliding_window": "8"}, "sliding_window is '8'"),
    ("ouro", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
    (
        "ouro",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "max_window_layers is 1",
    ),
    ("ouro", {"use_sliding_window": True, "sliding_window": 8}, "max_window_layers is None"),
    ("ouro", {"layer_types": ["sliding_attention"] * 2}, "has sliding_attention, and no sliding_window"),
    (
        "ouro",
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "layer_types is",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), WINDOW_REFUSALS)
def test_windows_that_are_refused(
    tiny: Callable[[str], Path], kind: str, change: dict[str, Any], message: str
) -> None:
    folder = tiny(kind)
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_every_key_that_transformers_writes_is_known(
    tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Of the model's class, and of generation, which older versions write into config.json."""
    transformers = pytest.importorskip("transformers")
    folder = tiny("llama")
    ours = json.loads((folder / "config.json").read_text())
    theirs = transformers.LlamaConfig().to_dict() | transformers.GenerationConfig().to_dict()
    on = {key: 1 if value is None else value for key, value in theirs.items() if key not in ours}
    (folder / "config.json").write_text(json.dumps(on | ours, default=str))
    assert read(folder).program.depths == 2
    assert not caplog.messages


@pytest.mark.parametrize("kind", [*KINDS, *FIXTURES])
def test_known_checkpoints_are_read_without_a_word(
    checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    read(checkpoint(kind))
    assert not [line for line in caplog.messages if "notice" in line or "go by" in line]


def test_unknown_keys_are_named(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny("llama")
    strange = {"wandb_url": "https://x", "my_note": "\x1b[31mred", "off": False, "null": None}
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"}, **strange)
    read(folder)
    (message,) = caplog.messages
    assert message.endswith("does not know and takes no notice of: 'auto_map', 'my_note', 'wandb_url'")


def test_config_keys_that_change_nothing(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama")
    harmless = {
        "use_sliding_window": False,
        "sliding_window": 64,
        "layer_sharing": False,
        "pretraining_tp": 1,
    }
    edit(folder / "config.json", eos_token_id=[1, 2], rope_scaling=None, head_dim=None, **harmless)
    assert read(folder).program.eos_token_ids == (1, 2)


TRAINING_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"mor__enable": True}, r"mor\.type is None"),
    ({"kv_sharing__enable": True, "kv_sharing__update_cache": True}, r"kv_sharing\.update_cache is true"),
    ({"kv_sharing__enable": True, "kv_sharing__num_recursion": 2}, r"kv_sharing\.num_recursion is 2"),
    ({"kv_sharing__enable": True, "kv_sharing__sharing": "cycle"}, r"kv_sharing\.sharing is 'cycle'"),
    ({"kv_sharing__enable": True, "kv_sharing__stride": 1}, r"kv_sharing\.stride is not understood"),
    ({"relaxation__enable": True, "relaxation__method": "dora"}, "method is 'dora'"),
    (
        {"relaxation__enable": True, "relaxation__method": "recursion_encoding"},
        "layers.*recursion_encoding|block",
    ),
    ({"relaxation__enable": True, "relaxation__method": "adaption_prompt"}, r"relaxation\.prompt"),
    ({"relaxation__enable": True, "relaxation__twist": 1}, r"relaxation\.twist"),
    ({"relaxation__enable": "on"}, "enable is 'on'"),
    ({"recursive__sharing": "spiral"}, "sharing is 'spiral'"),
    ({"recursive__sharing": "middle_sequence"}, "should be shared, but differ"),
    ({"recursive__num_recursion": 4}, "not this checkpoint's"),
    ({"recursive__num_recursion": 1}, "nothing is repeated"),
    ({"recursive__wobble": 1}, r"recursive\.wobble"),
    ({"early_exit": {"enable": True}}, "early_exit"),
    ({"loop_attn": {"enable": True, "lr_scale": 0.1}}, "loop_attn"),
    ({"qk_norm": True}, "qk_norm is True, which is not understood"),
    ({"recursive": {"enable": True}}, "num_recursion"),
]


@pytest.mark.parametrize(("change", "message"), TRAINING_REFUSALS)
def test_conf_yaml_that_is_refused(tiny: Callable[[str], Path], change: dict[str, Any], message: str) -> None:
    folder = tiny("mor-middle-cycle")
    edit(folder / "conf.yaml", **change)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


ROUTING_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("expert", {"mor__rand_router": True}, r"mor\.rand_router is true"),
    ("expert", {"mor__type": "both"}, r"mor\.type is 'both'; wanted expert or token"),
    ("expert", {"mor__router_type": "deep"}, r"mor\.router_type is 'deep'.*linear, mlp, wide_mlp"),
    ("expert", {"mor__router_type": "mlp"}, r"mor_router\.router\.0\.weight"),
    ("expert", {"mor__use_depth_embedding": True}, r"mor\.use_depth_embedding is not understood"),
    ("expert", {"mor__temp": 0}, "mor: temp is 0"),
    ("expert", {"mor__capacity": "1.0,0.5"}, r"mor\.capacity is '1.0,0.5'; wanted .* 3 depths"),
    ("expert", {"mor__capacity": [10**400, 0.5, 0.1]}, r"mor\.capacity is \["),
    ("expert", {"mor__capacity": "1.0,0.5,0.6"}, r"mor\.capacity"),
    ("expert", {"mor__capacity": "1.0,0.5,x"}, r"mor\.capacity"),
    ("expert", {"mor__capacity": [1.0, None, 0.1]}, r"mor\.capacity"),
    ("expert", {"mor__capacity": [1.5, 1.0, 0.5]}, r"mor\.capacity"),
    (
        "expert",
        {"mor__expert__router_func": "softmax"},
        r"mor\.expert\.router_func is 'softmax'.*null, sigmoid, tanh",
    ),
    ("expert", {"mor__expert__gating": "linear"}, r"mor\.expert\.gating is 'linear'.*weighted, additive"),
    ("expert", {"mor__expert__gating": ["weighted"]}, r"mor\.expert\.gating"),
    ("expert", {"mor__expert__sampling": "topk"}, r"mor\.expert\.sampling is 'topk'"),
    ("expert", {"mor__expert__sampling": "aux_router"}, r"mlp_router\.router\.weight"),
    ("expert", {"mor__expert__alpha": None}, "has no alpha|alpha is None"),
    ("expert", {"mor__expert__bonus": 1}, r"mor\.expert\.bonus is not understood"),
    ("expert", {"mor__expert": 3}, r"mor\.expert is 3"),
    ("expert", {"mor__type": "token"}, "conf.yaml is not this checkpoint's"),
    ("expert", {"mor__enable": False}, "conf.yaml is not this checkpoint's"),
    ("expert", {"recursive__sharing": "middle_sequence"}, "'middle_sequence' with mor enabled"),
    ("expert", {"recursive__num_recursion": 2}, "conf.yaml is not this checkpoint's"),
    ("token", {"recursive__num_recursion": 2**20}, "num_recursion is 1048576; wanted 1024 at most"),
    (
        "expert",
        {"kv_sharing__enable": True, "kv_sharing__update_cache": True},
        r"kv_sharing\.update_cache is true",
    ),
    (
        "own-attention",
        {"kv_sharing__enable": True},
        "kv_sharing is enabled, and attention has matrices for each",
    ),
    ("token", {"mor__token__router_func": "tanh"}, r"mor\.token\.router_func is 'tanh'"),
    ("token", {"mor__token__balancing": "magic"}, r"mor\.token\.balancing is 'magic'"),
    ("token", {"mor__type": "expert"}, "conf.yaml is not this checkpoint's"),
    ("token", {"mor__token": None}, r"router_bias is part of a layer"),
]


@pytest.mark.parametrize(("kind", "change", "message"), ROUTING_REFUSALS)
def test_routing_that_is_refused(
    tiny: Callable[[str], Path], kind: str, change: dict[str, Any], message: str
) -> None:
    folder = tiny(f"mor-{kind}")
    edit(folder / "conf.yaml", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "part"), [("expert", "mlp.up_proj"), ("token", "mlp.up_proj"), ("token", "self_attn.k_proj")]
)
def test_blocks_that_are_not_shared(tiny: Callable[[str], Path], kind: str, part: str) -> None:
    """Only attention of expert choice was ever each recursion's own."""
    folder = tiny(f"mor-{kind}")
    block = "model.layers.{}.block.1" if kind == "expert" else "model.layers.1.block_list.{}.1"
    first, third = (f"{block.format(r + (kind == 'expert'))}.{part}.weight" for r in (0, 2))
    edit_weights(folder, lambda t: t.update({third: t[third] * 1.01}))
    with pytest.raises(CheckpointError, match="should be shared, but differ") as caught:
        read(folder)
    assert first in str(caught.value)
    assert third in str(caught.value)


def test_kv_sharing_of_layers_that_repeat_in_place(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-sequence")
    edit(folder / "conf.yaml", kv_sharing__enable=True)
    with pytest.raises(CheckpointError, match="no loop whose depths could share"):
        read(folder)


@pytest.mark.parametrize(("part", "there"), [("weight", "bias"), ("bias", "weight")])
def test_half_an_exit_gate(tiny: Callable[[str], Path], part: str, there: str) -> None:
    folder = tiny("ouro")
    edit_weights(folder, lambda t: t.pop(f"model.early_exit_gate.{part}"))
    with pytest.raises(CheckpointError, match=f"no tensor model.early_exit_gate.{part}"):
        read(folder)


DEMO_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"router_capacity": [1.0, 0.5]}, r"router_capacity is \[1.0, 0.5\]; wanted .* 3 depths"),
    ({"router_capacity": [0.5, 1.0, 0.5]}, "router_capacity"),
    ({"router_capacity": [1.0, True, 0.5]}, "router_capacity"),
    ({"router_capacity": "1.0,0.5,0.1"}, "router_capacity"),
    ({"router_capacity": [10**400, 0.5, 0.1]}, "router_capacity"),
    ({"router_capacity": None}, "router_alpha and no router_capacity"),
    ({"router_capacity": None, "router_alpha": None}, "router.weight is part of a layer or router"),
    ({"router_alpha": 0}, "router_alpha is 0"),
    ({"kv": "shared"}, "kv is shared, which is for"),
    ({"kv": "last"}, "kv is 'last'; wanted per-depth or shared"),
    ({"sliding_window": -1}, "sliding_window is -1"),
]


@pytest.mark.parametrize(("change", "message"), DEMO_REFUSALS)
def test_keys_of_the_routed_demo_model(
    tiny: Callable[[str], Path], change: dict[str, Any], message: str
) -> None:
    folder = tiny("edgeloop-routed")
    edit(folder / "config.json", **change)
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
        """Four of seven matrices: what is left in common is no block."""
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
            for layer in range(6):
                tensors[f"model.layers.{layer}.{part}.weight"] += layer

    edit_weights(folder, untie)
    with pytest.raises(
        CheckpointError, match="ordinary model: none of its 6 layers repeats.*a recursive checkpoint"
    ):
        read(folder)


Q, UP = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"


@pytest.mark.parametrize("changed", [1, 2, 3, 4])
@pytest.mark.parametrize("tensors", [[UP], [UP, Q]])
def test_a_block_that_few_tensors_break(
    tiny: Callable[[str], Path], changed: int, tensors: list[str]
) -> None:
    """Two layers, twice: whichever layer is changed, it is said which one, beside which other."""
    folder = tiny("llama")
    names = [name.format(changed) for name in tensors]
    edit_weights(folder, lambda t: t.update({name: t[name] * 1.5 for name in names}))
    with pytest.raises(
        CheckpointError, match="layers 1 to 4 repeat, 2 at a time and 2 times, but for"
    ) as caught:
        read(folder)
    assert f"but for {len(names)} of their 28 tensors" in str(caught.value)
    other = changed + 2 if changed < 3 else changed - 2
    for name, plain in zip(names, tensors, strict=True):
        pair = f"{name} differs from {plain.format(other)}", f"{plain.format(other)} differs from {name}"
        assert any(line in str(caught.value) for line in pair)
    assert "\n" not in str(caught.value)


def test_a_loop_that_would_be_longer_but_for_a_tensor(
    tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Layers 1 to 6 are one layer, but 6 is not quite: five are read as the loop, and the sixth is named."""
    folder = tiny("mor-cycle")
    (folder / "conf.yaml").unlink()

    def same(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.") and "layers.0." not in n]:
            rest = name.split(".", 3)[3]
            tensors[name] = tensors[f"model.layers.0.{rest}"].clone()
        tensors[UP.format(5)] += 1

    edit_weights(folder, same)
    program = read(folder).program
    assert runs(program) == [LayerRun(1, 5), LayerRun(1, 1)]
    assert "layers 0 to 5 repeat, 1 at a time and 6 times, but for 1 of their 42 tensors" in caplog.text
    assert f"{UP.format(5)} differs from {UP.format(0)}" in caplog.text


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
    ("model.layers.1.self_attn.q_proj.lora_A.default.weight", "add", "half of a LoRA"),
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
