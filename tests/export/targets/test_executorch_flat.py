"""The flat layout for ExecuTorch: what it computes, for every family; and two programs, each lowered once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import KINDS, VOCAB, looped_layer

from edgeloop.export.bounds import EXACT
from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.stored import write_weights
from edgeloop.export.target import Job
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime import Session
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.engines.executorch.flat import Flat as Details
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import BundleError, ExportError, ParityError, UsageError
from edgeloop.runtime.model.transform import windowed

pytest.importorskip("executorch")
from edgeloop.export.lower.xnnpack_weights import Matrix, Numbers
from edgeloop.export.targets.executorch.flat import Flat
from edgeloop.export.targets.executorch.flat_program import FlatProgram, chunk_of, rows_of
from edgeloop.export.targets.executorch.flat_target import ExecutorchFlatTarget, check_parity
from edgeloop.export.targets.executorch.ring import Ring

PROMPT = "Once upon"
# Methods that extension/llm/runner/constants.h of executorch 1.5.1 names, and what its runner converts them to.
CONTRACT: dict[str, type] = {
    "get_max_seq_len": int,
    "get_max_context_len": int,
    "get_vocab_size": int,
    "use_kv_cache": bool,
    "use_sdpa_with_kv_cache": bool,
    "enable_dynamic_shape": bool,
    "get_bos_id": int,
    "get_eos_ids": int,
}


class Eager:
    """The module itself as a program."""

    def __init__(self, model: Flat) -> None:
        self.model = model

    def logits(self, ids: Sequence[int], start: int) -> F32:
        with torch.no_grad():
            found: F32 = self.model(torch.tensor([list(ids)]), torch.tensor([start]))[0].numpy()
        return found


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer that is run twice, with norms and deltas of each depth."""
    return looped_layer(
        tmp_path_factory.mktemp("looped") / "checkpoint", max_position_embeddings=160, eos_token_id=7
    )


@pytest.fixture(scope="module")
def floats(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float32, for onnx too."""
    path = tmp_path_factory.mktemp("flat") / "floats"
    export_bundle(looped, path, targets=["onnx"], quant="none")
    export_bundle(looped, path.with_name("flat"), targets=["executorch"], layouts=["flat"], quant="none")
    return path


@pytest.fixture(scope="module")
def codes(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in int4."""
    path = tmp_path_factory.mktemp("flat") / "codes"
    export_bundle(looped, path, targets=["executorch"], layouts=["flat"], quant="int4")
    return path


def head(model: Flat) -> Matrix:
    """The matrix of the logits."""
    return next(module for module in model.head.modules() if isinstance(module, Matrix))


def program(bundle: Path) -> Path:
    return bundle / "executorch-flat" / "model.pte"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama-sharded"])
def test_every_family(
    reading: Callable[[str], Reading], oracle: Callable[..., ReferenceBackend], tmp_path: Path, kind: str
) -> None:
    program = reading(kind).program
    if program.routing is not None:
        with pytest.raises(
            ExportError, match=r"router \((expert|token) choice\), and a flat graph runs every depth"
        ):
            ExecutorchFlatTarget().check(program, Recipe.named("none", 32))
        return
    write_weights(reading(kind), Recipe.named("none", 32), tmp_path / "w")
    chunk = 4  # smaller than the check's pieces: caches of windows are written over
    model = Flat(program, load_file(tmp_path / "w"), rows_of(program, chunk), chunk)
    assert check_parity(Eager(model), oracle(kind), chunk)[0] < 1e-5
    head(model).weight.data[5] += 1
    with pytest.raises(ParityError, match="disagrees with the reference engine in the logits of token 4"):
        check_parity(Eager(model), oracle(kind), chunk)


@pytest.mark.parametrize("quant", ["int4", "int8-channel"])
def test_the_model_is_checked_before_it_is_lowered(
    reading: Callable[[str], Reading], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    """In floats, of quantized weights; and the caches that were written to are lowered empty."""
    recipe = Recipe.named(quant, 32)
    write_weights(reading("mor-lora"), recipe, tmp_path / "w")
    named = "edgeloop.export.targets.executorch.flat_target."
    lowered: list[Flat] = []

    def lower(model: Flat, constants: object) -> None:
        lowered.append(model)
        raise ExportError("far enough")

    def wrong(*args: Any) -> Flat:
        model = Flat(*args)
        norm = [module for module in model.body.modules() if isinstance(module, Numbers)][3]
        norm.get_buffer("numbers")[3] *= 1.01
        return model

    monkeypatch.setattr(f"{named}lower_flat", lower)
    job = Job(reading("mor-lora").program, recipe, tmp_path / "w", tmp_path, lambda step, part: None)
    with pytest.raises(ExportError, match="far enough"):
        ExecutorchFlatTarget().export(job)
    rings = [module for module in lowered[0].modules() if isinstance(module, Ring)]
    assert len(rings) > 3
    assert not any(cache.any() for ring in rings for cache in ring.buffers())
    weight = head(lowered[0]).weight
    assert weight.activation_quantization is not None
    (tmp_path / "executorch-flat").rmdir()
    monkeypatch.setattr(f"{named}Flat", wrong)
    with pytest.raises(ParityError, match="the unrolled model disagrees with the reference engine"):
        ExecutorchFlatTarget().export(job)
    assert len(lowered) == 1


def test_more_tokens_than_the_context(reading: Callable[[str], Reading], tmp_path: Path) -> None:
    """The oldest are forgotten, one by one; the runner does not count the prompt when it says how many may come."""
    program = reading("mor-cycle").program
    write_weights(reading("mor-cycle"), Recipe.named("none", 32), tmp_path / "w")
    weights, ids = load_file(tmp_path / "w"), np.random.default_rng(0).integers(0, VOCAB, 20)
    short = Eager(Flat(program, weights, 8, 1))
    long = Eager(Flat(windowed(program, 8), weights, 20, 1))
    for i, token in enumerate(ids):
        np.testing.assert_allclose(short.logits([token], i), long.logits([token], i), atol=1e-5)


def test_the_contract_of_the_stock_runner(floats: Path) -> None:
    from executorch.runtime import Runtime

    path = program(floats.with_name("flat"))
    opened = FlatProgram(path)
    assert set(CONTRACT) | {"forward", "get_n_layers"} == set(opened.names)
    for name, kind in CONTRACT.items():
        assert [type(value) for value in opened.constant(name)] == [kind], name
    assert opened.constant("get_max_context_len") == [160]
    assert opened.constant("get_max_seq_len") == [64]
    assert opened.constant("get_eos_ids") == [7]
    meta = Runtime.get().load_program(path).metadata("forward")
    assert (meta.num_inputs(), meta.num_outputs()) == (2, 1)
    long, float32 = 4, 6
    tensors = [meta.input_tensor_meta(0), meta.input_tensor_meta(1), meta.output_tensor_meta(0)]
    assert [(tuple(t.sizes()), t.dtype()) for t in tensors] == [
        ((1, 64), long),  # at most
        ((1,), long),
        ((1, VOCAB), float32),
    ]


def test_the_stock_runner_writes_what_onnx_writes(floats: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A prompt of one call, and one of several."""
    for prompt in (PROMPT, PROMPT * 9):
        with Session.open(floats) as session:
            wanted = "".join(step.text for step in session.generate(prompt, 20))
        assert run(program(floats.with_name("flat")), floats / "tokenizer.json", prompt, 20) == wanted


def run(path: Path, tokenizer: Path, prompt: str, count: int) -> str:
    """What the wheel's TextLLMRunner writes, greedily."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    pieces: list[str] = []
    config = GenerationConfig(echo=False, max_new_tokens=count, temperature=0.0)
    TextLLMRunner(str(path), str(tokenizer)).generate(prompt, config, pieces.append)
    return "".join(pieces)


def test_weights_are_stored_once_and_bit_for_bit(codes: Path, looped: Path, tmp_path: Path) -> None:
    from editing import read

    data = program(codes).read_bytes()
    write_weights(read(looped), Recipe.named("int4", 32), tmp_path / "w")
    stored = load_file(tmp_path / "w")
    names = [name for name in stored if name.endswith(".codes")]
    assert len(names) == 5
    for name in names:
        whole = stored[name].flatten(1)
        # q, k, v and gate, up are matrices of their own here; a tied embedding is there for the lookup too.
        parts = {"qkv_proj": (64, 32, 32), "gate_up_proj": (96, 96)}.get(name.split(".")[-2], (len(whole),))
        for part in whole.split(parts):
            assert data.count(part.numpy().tobytes()) == (2 if name.startswith("embed") else 1), name
        scales = stored[name.replace("codes", "scales")].float().split(parts)
        for part in scales:
            assert data.count(part.bfloat16().view(torch.uint8).numpy().tobytes()) == 1, name


def test_a_bundle_of_it(codes: Path) -> None:
    manifest = Bundle.open(codes).manifest
    target = manifest.targets["executorch-flat"]
    said = target.details_as(Details)
    assert said.rows == 160
    assert said.constants["get_n_layers"] == 2
    assert target.parity.per_depth == ()
    assert 0 < target.parity.logits < EXACT
    assert target.parity.bound is not None
    assert EXACT < target.parity.bound < 0.5
    assert target.parity.shipped < target.parity.bound
    with pytest.raises(
        BundleError, match="holds executorch in the flat layout, for executorch's own runners"
    ):
        Session.open(codes, engine="executorch")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"targets": ["onnx"], "layouts": ["flat"]}, "target onnx has no flat layout, only executorch"),
        (
            {"targets": ["executorch"], "layouts": ["round"]},
            "unknown layout 'round': choose from staged, flat",
        ),
        ({"targets": ["executorch"], "layouts": []}, "no layout: choose from staged, flat"),
    ],
)
def test_layouts_that_are_not_there(looped: Path, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundle(looped, tmp_path / "out", **keys)


def test_sizes_of_calls_and_caches(reading: Callable[[str], Reading]) -> None:
    whole, window = reading("mor-cycle").program, reading("llama-window").program
    assert (chunk_of(whole), rows_of(whole, 8)) == (64, 64)
    assert rows_of(window, 8) == 13
