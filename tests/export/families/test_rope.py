"""Rotary embeddings as configs ask for them: those of transformers, in both spellings; and a model that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgeloop.export.families.rope import rotation
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.model.rotary import cos_sin, frequencies
from edgeloop.runtime.session import Session

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TABLES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 2, "attention_factor": 0.9},
    {"rope_type": "yarn", "factor": 16.0, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": True},
]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_those_of_transformers(table: dict[str, Any], spelling: str) -> None:
    theirs = LlamaConfig(
        head_dim=32, max_position_embeddings=256, rope_parameters={"rope_theta": 5e4, **table}
    )
    wanted, amplitude = ROPE_INIT_FUNCTIONS[table["rope_type"]](theirs, torch.device("cpu"))
    table = dict(table)
    if spelling == "rope_scaling":
        table["type"] = table.pop("rope_type")
    config = {spelling: table, "rope_theta": 5e4, "max_position_embeddings": 256}
    by = rotation(config, "config.json", 32)
    np.testing.assert_allclose(frequencies(by), wanted.numpy(), rtol=4e-6)
    cos, sin = cos_sin(by, np.arange(3))
    np.testing.assert_allclose(np.hypot(cos, sin), amplitude, rtol=1e-6)


@pytest.mark.parametrize("table", TABLES[:3])
def test_logits_of_a_model(tmp_path: Path, table: dict[str, Any]) -> None:
    """A Llama of equal layers and scaled rotary embeddings, exported for the engines."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, attn_implementation="eager",
            rope_parameters={"rope_theta": 1e3, **table},
        )
    ).eval()  # fmt: skip
    model.model.layers[2].load_state_dict(model.model.layers[1].state_dict())
    model.save_pretrained(tmp_path / "model")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (1, 24)))
    with torch.no_grad():
        wanted = model(ids).logits[0].numpy()
    export_bundle(tmp_path / "model", tmp_path / "bundle", quant="none")
    for engine in ("reference", "onnx"):
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            assert session.program.rotations[0].scaling is not None
            assert np.abs(session.logits(ids[0].tolist()) - wanted).max() < 2e-5
