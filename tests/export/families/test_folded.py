"""Folded models beside the fixtures, against transformers: Qwen 3, windows by layer, norms of depths; refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from family_runs import F32, decoded
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.facts import LayerRun, attentions, runs

BOUND = 5e-5  # of logits up to 15
IDS = np.random.default_rng(3).integers(0, 50, 20)
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip


def folded(
    folder: Path,
    cls: type[PreTrainedModel],
    config: PretrainedConfig,
    fold: tuple[int, ...],
    norms: bool = False,
) -> F32:
    """Save a random model whose layer i has the weights of layer ``fold[i]``; with ``norms``, norms of its own. Return
    its logits [20, 50]."""
    torch.manual_seed(len(fold))
    model: Any = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (name.endswith("norm.weight")))
        for layer, source in zip(model.model.layers, fold, strict=True):
            own = {n: p.clone() for n, p in layer.state_dict().items() if "norm" in n} if norms else {}
            layer.load_state_dict(model.model.layers[source].state_dict() | own)
        wanted: F32 = model(torch.from_numpy(IDS[None])).logits[0].numpy()
    model.save_pretrained(folder)
    return wanted


def check(folder: Path, wanted: F32, layers: list[LayerRun], windows: list[int | None]) -> None:
    """Export for the engines, which compute ``wanted`` at once and cached."""
    export_bundle(folder, folder.parent / "bundle", quant="none")
    for engine in ("reference", "onnx"):
        with Session.open(folder.parent / "bundle", engine=engine) as session:
            assert runs(session.program) == layers
            assert [op.window for op in attentions(session.program)] == windows
            assert np.abs(session.logits(IDS) - wanted).max() <= BOUND
            assert np.abs(decoded(session.backend, IDS) - wanted).max() <= BOUND


@pytest.mark.parametrize("bias", [False, True])
def test_qwen3(tmp_path: Path, bias: bool) -> None:
    """Norms of heads; depths whose matrices are one and whose norms are not have rows of norms, of heads too."""
    config = Qwen3Config(**SIZES, num_hidden_layers=5, attention_bias=bias, tie_word_embeddings=False)
    wanted = folded(tmp_path / "model", Qwen3ForCausalLM, config, (0, 1, 1, 1, 4), norms=True)
    check(tmp_path / "model", wanted, [LayerRun(1, 1), LayerRun(1, 3), LayerRun(1, 1)], [None] * 3)
    weights = read(tmp_path / "model").program.weights
    assert weights["segments.1.layers.0.q_norm"].per_depth
    assert not weights["segments.0.layers.0.q_norm"].per_depth


def test_qwen2_with_a_window_from_a_layer_on(tmp_path: Path) -> None:
    """The last four layers have it, and make the loop: equal weights with another window are another layer."""
    config = Qwen2Config(
        **{k: v for k, v in SIZES.items() if k != "head_dim"}, num_hidden_layers=6, use_sliding_window=True,
        sliding_window=5, max_window_layers=2,
    )  # fmt: skip
    wanted = folded(tmp_path / "model", Qwen2ForCausalLM, config, (0, 0, 0, 0, 0, 0))
    check(tmp_path / "model", wanted, [LayerRun(1, 2), LayerRun(1, 4)], [None, None, 5, 5, 5, 5])


def test_gemma2_of_one_layer_with_windows_in_turn(tmp_path: Path) -> None:
    """Six equal layers are three times two, since every other one has a window."""
    config = Gemma2Config(**SIZES, num_hidden_layers=6, sliding_window=6, query_pre_attn_scalar=11)
    wanted = folded(tmp_path / "model", Gemma2ForCausalLM, config, (0,) * 6)
    check(tmp_path / "model", wanted, [LayerRun(2, 3)], [6, None])


def test_keys_of_older_transformers(parity_folder: Path, tmp_path: Path) -> None:
    """Gemma 2 and 3 without layer_types or rope_parameters go by their patterns and by bases of their own keys."""
    for name, changes in (
        ("fold_gemma2", {"layer_types": None, "rope_parameters": None, "rope_theta": 10000.0}),
        (
            "fold_gemma3",
            {"layer_types": None, "rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
             "sliding_window_pattern": 3},
        ),
    ):  # fmt: skip
        folder = Path(shutil.copytree(parity_folder / name, tmp_path / name))
        edit(folder / "config.json", **changes)
        assert read(folder).program == read(parity_folder / name).program


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("fold_qwen2", {"attention_bias": True}, "attention_bias is True, which is not supported"),
    ("fold_qwen2", {"layer_types": ["full_attention"], "use_sliding_window": True}, "for each of 6 layers"),
    ("fold_qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1"),
    ("fold_qwen2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type is 'dynamic'"),
    ("fold_gemma1", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ("fold_gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("fold_gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping is -1"),
    ("fold_gemma3", {"rope_parameters": {"full_attention": {}, "chunked": {}}}, "rope_parameters has 'chunked'"),
    ("fold_olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0, and this family does not know the key"),
    ("fold_olmo2", {"num_hidden_layers": 4}, "says num_hidden_layers 4, the weights have 6 layers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSALS)
def test_refusals(
    parity_folder: Path, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(parity_folder / name, tmp_path / "model"))
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_an_ordinary_model_and_a_bias_that_is_not_read(parity_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parity_folder / "fold_olmo2", tmp_path / "model"))
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folder, lambda t: t.update({bias: torch.ones(32)}))
    with pytest.raises(CheckpointError, match="q_proj.bias is part of a layer and not understood"):
        read(folder)

    def apart(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[bias]
        for name in tensors:
            if name.startswith(("model.layers.1.", "model.layers.2.")):
                tensors[name] += 1

    edit_weights(folder, apart)
    with pytest.raises(CheckpointError, match="ordinary model: none of its 6 layers repeats"):
        read(folder)
