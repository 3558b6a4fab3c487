"""The reference engine computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import forward
import numpy as np
import pytest
import torch
from forward import AUTHORS
from safetensors.torch import load_file
from tiny import KINDS

from edgeloop.export.family import Reading
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import F32, Lanes
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.reference.engine import ReferenceBackend

Oracles = Callable[..., ReferenceBackend]
IDS = np.random.default_rng(3).integers(0, 320, 19)


def run(oracle: ReferenceBackend, ids: np.ndarray, chunk: int = 128) -> F32:
    loop = SequentialDecoder(oracle, oracle.new_cache(1, len(ids)), chunk=chunk)
    return loop.prompt(ids, rows="all").copy()


def difference(found: F32, wanted: torch.Tensor) -> float:
    return float((torch.from_numpy(found) - wanted).abs().max())


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.parametrize("chunk", [128, 5])
def test_authors_logits(oracle: Oracles, parity_folder: Path, name: str, chunk: int) -> None:
    reference = load_file(parity_folder / name / "reference.safetensors")
    ids = reference["input_ids"][0].numpy()
    assert difference(run(oracle(name), ids, chunk), reference[AUTHORS[name]][0]) <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_tiny_model(oracle: Oracles, reading: Callable[[str], Reading], kind: str) -> None:
    wanted = forward.logits(reading(kind), torch.from_numpy(IDS))
    assert difference(run(oracle(kind), IDS), wanted) <= 2e-5 * max(1, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("quant", "group_size"), [("int8", 32), ("int8-channel", 32), ("int4", 32), ("int4", 128)]
)
@pytest.mark.parametrize("kind", ["edgeloop", "mor-norms", "mobilellm", "ouro"])
def test_quantized(
    oracle: Oracles, stored_reading: Callable[..., Reading], kind: str, quant: str, group_size: int
) -> None:
    """Against a forward over the dequantized weights, so that only the reading of codes can differ."""
    wanted = forward.logits(stored_reading(kind, quant, group_size), torch.from_numpy(IDS))
    found = run(oracle(kind, quant, group_size), IDS, chunk=7)
    assert difference(found, wanted) <= 2e-5 * max(1, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["mor-lora", "mor-sequence", "ouro"])
def test_prompt_and_single_tokens_equal_one_pass(oracle: Oracles, kind: str) -> None:
    model = oracle(kind)
    whole = run(model, IDS)
    loop = SequentialDecoder(model, model.new_cache(2, 32), cache_sequence=1)
    parts = [loop.prompt(IDS[:11], rows="all").copy()]
    parts += [loop.prompt(IDS[i : i + 1]).copy() for i in range(11, len(IDS))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["edgeloop", "mor-lora", "mor-norms", "ouro"])
def test_lanes_are_independent(oracle: Oracles, kind: str) -> None:
    """Lanes of different depth and length, one idle and all but one padded, equal calls of their own."""
    model = oracle(kind)
    random = np.random.default_rng(1)
    together, alone = model.new_cache(2, 16), model.new_cache(2, 16)
    for a, b in zip(_arrays(together), _arrays(alone), strict=True):
        a[:] = random.standard_normal(a.shape)
        b[:] = a
    depth, cached = np.array([2, 0, 1, 2]), np.array([5, 0, 3, 9], np.int32)
    tokens = np.array([3, 1, 0, 2], np.int32)
    positions = cached[:, None] + np.arange(3)
    state = random.standard_normal((4, 3, model.program.width)).astype(np.float32)
    found = model.block(state, Lanes(depth, cached, tokens, positions, first_slot=1), together)
    for b, n in enumerate(tokens):
        if not n:
            continue
        one = slice(b, b + 1)
        lanes = Lanes(depth[one], cached[one], tokens[one], positions[one, :n], first_slot=1 + b)
        np.testing.assert_allclose(
            found[b, :n], model.block(state[one, :n], lanes, alone)[0], atol=1e-5, rtol=1e-4
        )
    for a, b in zip(_arrays(together), _arrays(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def _arrays(cache: KVCache) -> list[F32]:
    return [array for pair in cache.stages["block"] for array in pair]
