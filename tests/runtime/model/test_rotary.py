"""Angles of positions, against the standard library and transformers; and how much of the tables is made."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgeloop.runtime.model.rotary import STEP, RotaryTables, cos_sin, frequencies
from edgeloop.runtime.model.rotation import Interpolated, Llama3, Rotation, Yarn

ULP = 2.0**-24  # of numbers just below 1, in float32
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
# Rule, what transformers calls it, and by what it is described there: of Llama 3.1, Qwen 2.5 and others.
RULES = [
    (Interpolated(2.5), "linear", {"factor": 2.5}),
    (Llama3(8.0, 1.0, 4.0, 8192), "llama3", LLAMA3),
    (Llama3(32.0, 1.0, 4.0, 8192), "llama3", LLAMA3 | {"factor": 32.0}),
    (Yarn(4.0, 32768, 0.1 * math.log(4) + 1), "yarn", YARN),
    (
        Yarn(4.0, 32768, 1.0, 16.0, 2.0),
        "yarn",
        YARN | {"attention_factor": 1.0, "beta_fast": 16, "beta_slow": 2},
    ),
]


def test_values():
    """Rounded once: far positions are as exact as near ones."""
    cos, sin = RotaryTables(Rotation(16, 5e5)).rows(1 << 17)
    assert cos.shape == sin.shape == (1 << 17, 8)
    assert cos.dtype == sin.dtype == np.float32
    for position in (0, 1, 4095, 4096, (1 << 17) - 1):
        for i in range(8):
            angle = position * 5e5 ** (-2 * i / 16)
            assert cos[position, i] == pytest.approx(math.cos(angle), abs=ULP)
            assert sin[position, i] == pytest.approx(math.sin(angle), abs=ULP)


def test_values_are_those_of_transformers():
    config = LlamaConfig(
        head_dim=16,
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    positions = torch.arange(200)
    for wanted, found in zip(
        LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]),
        cos_sin(Rotation(16, 1e4), positions.numpy()),
        strict=True,
    ):
        # It has both halves, and multiplies in float32.
        np.testing.assert_allclose(found, wanted[0, :, :8].numpy(), atol=200 * 2 * ULP)


@pytest.mark.parametrize(("scaling", "name", "parameters"), RULES)
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_scaled_frequencies_are_those_of_transformers(scaling, name, parameters, share, theta):
    config = LlamaConfig(
        head_dim=128,
        max_position_embeddings=1 << 17,
        rope_parameters={
            "rope_type": name,
            "rope_theta": theta,
            "partial_rotary_factor": share,
            **parameters,
        },
    )
    wanted, amplitude = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"))
    by = Rotation(int(128 * share), theta, scaling)
    # It has powers in float32.
    np.testing.assert_allclose(frequencies(by), wanted.numpy(), rtol=4e-6)
    assert not np.allclose(frequencies(by), frequencies(Rotation(by.dims, theta)), rtol=0.01)
    cos, sin = RotaryTables(Rotation(by.dims, theta, scaling)).rows(20)
    np.testing.assert_allclose(cos[0], amplitude, rtol=1e-6)
    np.testing.assert_allclose(cos**2 + sin**2, amplitude**2, rtol=1e-6)
    np.testing.assert_allclose(cos[19], np.cos(19 * wanted.double().numpy()) * amplitude, atol=2e-4)


def test_rules_are_told_apart_by_name():
    for scaling, name, _ in RULES:
        by = Rotation(16, 1e4, scaling)
        written = msgspec.json.encode(by)
        assert msgspec.json.decode(written)["scaling"]["rule"] == name
        assert msgspec.json.decode(written, type=Rotation) == by
    with pytest.raises(msgspec.ValidationError, match="ntk"):
        msgspec.json.decode(b'{"dims": 16, "theta": 1e4, "scaling": {"rule": "ntk"}}', type=Rotation)


def test_no_more_is_made_than_caches_want():
    tables = RotaryTables(Rotation(8, 1e4))
    assert len(tables.rows(0)[0]) == 0
    first = tables.rows(10)
    assert len(first[0]) == STEP
    assert tables.rows(STEP) is first
    second = tables.rows(STEP + 1)
    assert len(second[0]) == 2 * STEP
    np.testing.assert_array_equal(second[0][:STEP], first[0])
    np.testing.assert_array_equal(second[1][:STEP], first[1])
    assert tables.rows(10) is second


def test_an_engines_own_type():
    """Values that float16 holds, as float32."""
    exact, halved = (
        RotaryTables(Rotation(8, 1e4)).rows(50),
        RotaryTables(Rotation(8, 1e4), np.float16).rows(50),
    )
    for wanted, found in zip(exact, halved, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(np.float16).astype(np.float32))
