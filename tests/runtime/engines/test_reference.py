"""The oracle against transformers, and against itself in other cuts of the same work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import PROJECTIONS, Segment
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.stored import StoredWeights

IDS = np.random.default_rng(7).integers(0, 60, 23)
SEQUENCE = (Segment(layers=1, repeats=2), Segment(layers=1, repeats=2))  # MobileLLM-LS: a block of depth 1


def unrolled_llama(program: Program, weights: StoredWeights) -> LlamaForCausalLM | MistralForCausalLM:
    """The same model as a plain Llama: every application a layer of its own, with the deltas added in.

    With a sliding window it is a plain Mistral.
    """
    spec = spec_of(program)
    kind, window = LlamaForCausalLM, {}
    if spec.sliding_window is not None:
        kind, window = MistralForCausalLM, {"sliding_window": spec.sliding_window}
    config = (MistralConfig if window else LlamaConfig)(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.applied_layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
        attn_implementation="eager",
        **window,
    )

    def matrix(name: str) -> np.ndarray:
        return weights.rows(name, np.arange(weights.matrix(name).rows))

    state = {
        "model.embed_tokens.weight": matrix("embed"),
        "model.norm.weight": weights.small("norm.weight"),
        "lm_head.weight": matrix("embed" if spec.tied_embedding else "head"),
    }
    applied = 0
    for s, segment in enumerate(spec.segments):
        for e in range(segment.repeats):
            for j in range(segment.layers):
                prefix, ours = f"model.layers.{applied}", f"segments.{s}.layers.{j}"
                for norm, name in (
                    ("input_layernorm", "attention_norm"),
                    ("post_attention_layernorm", "mlp_norm"),
                ):
                    weight = weights.small(f"{ours}.{name}.weight")
                    state[f"{prefix}.{norm}.weight"] = weight[e] if weight.ndim == 2 else weight
                for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
                    parts = program.matrix(f"{ours}.{name}").parts
                    ends = np.cumsum(list(parts.values()))[:-1]
                    for part, weight in zip(parts, np.split(matrix(f"{ours}.{name}"), ends), strict=True):
                        if part in segment.lora:
                            a, b = (weights.small(f"{ours}.{part}.lora_{x}")[e] for x in "ab")
                            weight = weight + b @ a
                        home = "mlp" if part in PROJECTIONS[4:] else "self_attn"
                        state[f"{prefix}.{home}.{part}.weight"] = weight
                applied += 1
    model = kind(config).eval()
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    return model


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("segments", [None, SEQUENCE, (Segment(layers=2, repeats=3),)])
@pytest.mark.parametrize("tied", [True, False])
def test_it_computes_what_an_unrolled_llama_computes(maker, bits, segments, tied):
    program = maker.program(tied_embedding=tied, **({} if segments is None else {"segments": segments}))
    tensors = maker.tensors(program, bits)
    backend = maker.backend(program, bits)
    model = unrolled_llama(
        program, StoredWeights(program.weights, tensors, maker.quantization(bits).group_size)
    )
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    loop = SequentialDecoder(backend, backend.new_cache(1, 64), chunk=7)
    whole = loop.prompt(IDS, rows="all").copy()
    assert np.abs(whole - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
    loop.reset()
    parts = [loop.prompt(IDS[:9], rows="all").copy()]
    parts += [loop.prompt(IDS[i : i + 1]).copy() for i in range(9, len(IDS))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.parametrize("slack", [0, 3, 100])
@pytest.mark.parametrize("chunk", [1, 7, 23])
def test_a_sliding_window_is_that_of_a_mistral(maker, monkeypatch, slack, chunk):
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", slack)
    program = maker.program(sliding_window=5)
    backend = maker.backend(program)
    model = unrolled_llama(program, StoredWeights(program.weights, maker.tensors(program), 0))
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
        full = unrolled_llama(maker.program(), StoredWeights(program.weights, maker.tensors(program), 0))
        assert np.abs(full(torch.from_numpy(IDS)[None]).logits[0].numpy() - wanted).max() > 0.1
    cache = backend.new_cache(1, 23)
    assert cache.rows == min(23, 5 + slack)
    found = SequentialDecoder(backend, cache, chunk=chunk).prompt(IDS, rows="all")
    assert np.abs(found - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())


def test_lanes_of_different_depth_and_length_are_separate_calls(maker):
    program = maker.program()
    backend = maker.backend(program)
    random = np.random.default_rng(1)
    ours, theirs = backend.new_cache(2, 16), backend.new_cache(2, 16)
    for pairs, others in zip(ours.stages.values(), theirs.stages.values(), strict=True):
        for pair, other in zip(pairs, others, strict=True):
            for a, b in zip(pair, other, strict=True):
                a[:] = random.standard_normal(a.shape)
                b[:] = a
    cached, tokens = np.array([5, 0, 3, 9], np.int32), np.array([3, 1, 0, 2], np.int32)
    depth = np.array([2, 0, 1, 2])
    positions = cached[:, None] + np.arange(3) + np.array([0, 0, 0, 4])[:, None]  # lane 3 has skipped tokens
    state = random.standard_normal((4, 3, program.width)).astype(np.float32)
    together = backend.block(state, Lanes(depth, cached, tokens, positions, first_slot=1), ours)
    for b in range(4):
        one = slice(b, b + 1)
        n = int(tokens[b])
        lanes = Lanes(depth[one], cached[one], tokens[one], positions[one, :n], first_slot=1 + b)
        alone = backend.block(state[one, :n], lanes, theirs)
        np.testing.assert_array_equal(together[b, :n], alone[0])
        assert not together[b, n:].any()
    for pair, other in zip(ours.stages["block"], theirs.stages["block"], strict=True):
        np.testing.assert_array_equal(pair, other)


def test_norms_after_every_depth_and_on_outputs(maker):
    """With zero output norms a layer changes nothing, so only embedding, norms and head are left."""
    program = maker.program((Segment(layers=2, repeats=3),), sandwich_norms=True, loop_norm=True)
    tensors = maker.tensors(program)
    for name in tensors:
        if name.endswith("out_norm.weight"):
            tensors[name] = np.zeros_like(tensors[name])
    backend = type(maker.backend(program))(program, tensors, 0)
    states = {}
    loop = SequentialDecoder(
        backend, backend.new_cache(1, 64), observe=lambda d, x: states.update({d: x[0].copy()})
    )
    logits = loop.prompt(IDS, rows="all")
    x = tensors["embed.weight"][IDS]
    for depth in range(3):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * tensors["norm.weight"]
        np.testing.assert_allclose(states[depth], x, atol=1e-5)
    np.testing.assert_allclose(logits, x @ tensors["embed.weight"].T, atol=1e-5)


def test_missing_and_misshapen_tensors_are_named(maker):
    program = maker.program()
    tensors = maker.tensors(program)
    backend = type(maker.backend(program))
    del tensors["segments.1.layers.0.q_proj.lora_a"]
    with pytest.raises(BundleError, match=r"no segments\.1\.layers\.0\.q_proj\.lora_a \[3, 2, 32\]"):
        backend(program, tensors, 0)
    tensors = maker.tensors(program) | {"embed.weight": np.zeros((59, 32), np.float32)}
    with pytest.raises(BundleError, match=r"embed\.weight has shape \[59, 32\], wanted \[60, 32\]"):
        backend(program, tensors, 0)
