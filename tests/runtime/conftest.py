"""Tiny random models: their tensors, and bundles of them for the reference engine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from edgeloop.export.families.llama_program import program_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.runtime.bundle.manifest import (
    FORMAT,
    File,
    Manifest,
    Parity,
    Quantization,
    Target,
    Text,
    write_manifest,
)
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model import weights
from edgeloop.runtime.model.program import Program

Tensors = dict[str, npt.NDArray[np.generic]]
GROUP = 8
TEXT = "Once upon a time, there was a loop; it went round, and round again. " * 4
RELAXED = (
    Segment(layers=1),
    Segment(layers=2, repeats=3, per_repeat_norms=True, lora={"q_proj": 2, "v_proj": 3, "down_proj": 2}),
    Segment(layers=1),
)


def make_program(segments: tuple[Segment, ...] = RELAXED, **changes: object) -> Program:
    values: dict[str, object] = {
        "family": "test",
        "segments": segments,
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "context_length": 64,
        "tied_embedding": True,
    }
    return program_of(Spec(**{**values, **changes}))  # type: ignore[arg-type]


def make_tensors(program: Program, bits: int = 32, seed: int = 0) -> Tensors:
    """Random stored tensors of ``program``; matrices as float32, or as codes of ``bits`` bits."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    # The same numbers for the same shapes, in whatever order a program names its weights.
    layer = re.compile(r"segments\.\d+\.layers\.\d+")
    order = {"vector": 0, "delta": 1, "matrix": 2}
    stored = dict(
        sorted(
            weights.tensors(program.weights),
            key=lambda t: (found.group() if (found := layer.match(t[0])) else "", order[t[1].kind]),
        )
    )
    for name, tensor in stored.items():
        if tensor.kind != "matrix":
            noise, is_norm = random.standard_normal(tensor.shape), tensor.kind == "vector"
            tensors[name] = (1 + 0.1 * noise if is_norm else 0.3 * noise).astype(
                np.float32 if is_norm else np.float16
            )
    matrices = {n.removesuffix(".weight"): t.shape for n, t in stored.items() if t.kind == "matrix"}
    for name, (n, k) in matrices.items():
        if bits == 32:
            tensors[f"{name}.weight"] = (random.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)
            continue
        width = GROUP * bits // 8
        tensors[f"{name}.codes"] = random.integers(0, 256, (n, k // GROUP, width), dtype=np.uint8)
        largest = 2 ** (bits - 1) * np.sqrt(k) / 1.5
        tensors[f"{name}.scales"] = ((0.5 + random.random((n, k // GROUP))) / largest).astype(np.float16)
    return tensors


def make_quantization(bits: int = 32) -> Quantization:
    scheme = "none" if bits == 32 else f"int{bits}"
    return Quantization(scheme=scheme, bits=bits, group_size=0 if bits == 32 else GROUP)


def make_backend(program: Program, bits: int = 32, seed: int = 0) -> ReferenceBackend:
    return ReferenceBackend(program, make_tensors(program, bits, seed), make_quantization(bits).group_size)


def make_bundle(
    folder: Path,
    program: Program,
    *,
    bits: int = 32,
    tokenizer: Engine | None = None,
    chat_template: str | dict[str, str] | None = None,
    special_tokens: dict[str, str] | None = None,
) -> Path:
    """A bundle that the reference engine can run; its graphs are empty files."""
    (folder / "onnx").mkdir(parents=True)
    save_file(make_tensors(program, bits), folder / "onnx" / "weights.safetensors")
    graphs = {stage: f"onnx/{stage}.onnx" for stage in ("prologue", "block", "epilogue")}
    for name in graphs.values():
        (folder / name).write_bytes(b"")
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        path.relative_to(folder).as_posix(): File(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        format=FORMAT,
        edgeloop="0.1.0",
        program=program,
        quantization=make_quantization(bits),
        targets={
            "onnx": Target(graphs, "onnx/weights.safetensors", Parity((0.0,) * program.depths, 0.0, 0.0))
        },
        text=Text(
            tokenizer="tokenizer.json" if tokenizer is not None else None,
            special_tokens=special_tokens or {},
            chat_templates={"default": chat_template}
            if isinstance(chat_template, str)
            else chat_template or {},
        ),
        parameters=1,
        unrolled_parameters=1,
        files=files,
    )
    write_manifest(folder, manifest)
    return folder


class Maker:
    """The helpers above, for tests to use through the fixture ``maker``."""

    program = staticmethod(make_program)
    tensors = staticmethod(make_tensors)
    quantization = staticmethod(make_quantization)
    backend = staticmethod(make_backend)
    bundle = staticmethod(make_bundle)


@pytest.fixture(scope="session")
def maker() -> type[Maker]:
    return Maker


@pytest.fixture(scope="session")
def byte_level() -> Engine:
    """A byte-level BPE tokenizer; <|end|> is id 0."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([TEXT], trainer)
    return engine


@pytest.fixture(scope="session")
def byte_fallback() -> Engine:
    """Llama's kind: pieces with ▁ for a space, unknown characters as bytes, one leading space dropped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "▁a", "▁lo", "op", "▁loop", "▁lo" + "op."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "l"), ("o", "p")]
    vocab.setdefault("▁l", len(vocab))
    engine = Engine(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return engine


@pytest.fixture
def text_bundle(tmp_path: Path, byte_level: Engine) -> Callable[..., Path]:
    """Makes a bundle with the byte-level tokenizer: ``text_bundle(chat_template=…, **program changes)``."""

    def make(
        chat_template: str | dict[str, str] | None = None,
        special_tokens: dict[str, str] | None = None,
        **changes: object,
    ) -> Path:
        program = make_program(vocab_size=byte_level.get_vocab_size(), **changes)
        return make_bundle(
            tmp_path / "text_bundle",
            program,
            tokenizer=byte_level,
            chat_template=chat_template,
            special_tokens=special_tokens,
        )

    return make
