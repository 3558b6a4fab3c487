"""cos and sin of positions, against the standard library and transformers; and how much of them is made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgeloop.runtime.rotary import STEP, RotaryTables, rotary

ULP = 2.0**-24  # of numbers just below 1, in float32


def test_values(maker):
    """Rounded once: far positions are as exact as near ones."""
    spec = maker.spec(head_dim=16, rope_theta=5e5)
    cos, sin = RotaryTables(spec).rows(1 << 17)
    assert cos.shape == sin.shape == (1 << 17, 8)
    assert cos.dtype == sin.dtype == np.float32
    for position in (0, 1, 4095, 4096, (1 << 17) - 1):
        for i in range(8):
            angle = position * spec.rope_theta ** (-2 * i / spec.head_dim)
            assert cos[position, i] == pytest.approx(math.cos(angle), abs=ULP)
            assert sin[position, i] == pytest.approx(math.sin(angle), abs=ULP)


def test_values_are_those_of_transformers(maker):
    spec = maker.spec(head_dim=16, rope_theta=1e4)
    config = LlamaConfig(
        head_dim=16,
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
    )
    positions = torch.arange(200)
    for wanted, found in zip(
        LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None]),
        rotary(positions.numpy(), spec.head_dim, spec.rope_theta),
        strict=True,
    ):
        # It has both halves, and multiplies in float32.
        np.testing.assert_allclose(found, wanted[0, :, :8].numpy(), atol=200 * 2 * ULP)


def test_no_more_is_made_than_caches_want(maker):
    tables = RotaryTables(maker.spec(context_length=1 << 18))
    assert len(tables.rows(0)[0]) == 0
    first = tables.rows(10)
    assert len(first[0]) == STEP
    assert tables.rows(STEP) is first
    second = tables.rows(STEP + 1)
    assert len(second[0]) == 2 * STEP
    np.testing.assert_array_equal(second[0][:STEP], first[0])
    np.testing.assert_array_equal(second[1][:STEP], first[1])
    assert tables.rows(10) is second


def test_an_engines_own_type(maker):
    """Values that float16 holds, as float32."""
    spec = maker.spec()
    exact, halved = RotaryTables(spec).rows(50), RotaryTables(spec, np.float16).rows(50)
    for wanted, found in zip(exact, halved, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(np.float16).astype(np.float32))
