"""Synthetic checkpoints: the right sizes, the authors' formats, safe writing."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_runs import full
from forward import logits
from tiny import MOR, VOCAB
from tokenizers import Tokenizer

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, read_checkpoint, unused
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.export.synth import FORMATS, SHAPES, synthesize, synthesize_shape
from edgeloop.export.synth_shapes import WRITTEN_OUT
from edgeloop.export.synth_weights import SynthWeights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.errors import ExportError, UsageError


def test_shapes_are_the_real_ones() -> None:
    layers = {name: (len(s.stored_layers), s.applied_layers) for name, s in SHAPES.items()}
    assert layers == {
        "mor-360m-r3": (32, 32),
        "smollm-135m-r3": (29, 29),
        "mobilellm-ls-125m": (30, 60),
        "ouro-1.4b": (24, 96),
        "ouro-2.6b": (48, 192),
        "nanbeige-4.2-3b": (22, 44),
        "huginn-3.5b": (8, 132),
        "retrofit-tinyllama-4-8-4": (16, 264),
        "rrt-tinyllama-2x11": (22, 22),
        "rrt-gemma-2b-2x9": (18, 18),
        "rrt-pythia-1b-2x8": (16, 16),
    }
    assert len(set(SHAPES["mor-360m-r3"].stored_layers)) == 12
    assert {s.head_dim for s in SHAPES.values()} == {64, 96, 128, 256}
    # What their names say; Gemma 2B has 2.5 with its embedding, of which 18 layers become 9.
    wanted = {"ouro-1.4b": 1.4, "ouro-2.6b": 2.6, "huginn-3.5b": 3.5, "rrt-gemma-2b-2x9": 1.5}
    for name, billions in wanted.items():
        kind = FORMATS.get(SHAPES[name].family, SynthWeights)
        made = kind(SHAPES[name], torch.Generator(), torch.float16, 0)
        assert made.bytes_wanted() / 2e9 == pytest.approx(billions, rel=0.05), name


@pytest.mark.parametrize("name", SHAPES)
def test_a_small_model_of_each_shape_is_read_and_stays_sane(name: str, tmp_path: Path) -> None:
    real = SHAPES[name]
    heads = 4 if real.heads > 1 else 1
    small = replace(
        real,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        heads=heads,
        kv_heads=heads if real.kv_heads == real.heads else 1,
        head_size=8 if real.head_size else None,
        context=64,
    )
    checkpoint = Checkpoint.open(synthesize_shape(small, tmp_path / "small", dtype="float32"))
    reading = read_checkpoint(checkpoint)
    assert reading.program.family == real.family
    assert reading.program.applied_layers == real.applied_layers
    assert unused(checkpoint, reading) == []
    if real.family in WRITTEN_OUT:  # found in the weights, or said by conf.yaml and checked there
        assert reading.program.depths == real.repeats
    write_weights(reading, Recipe.named("none", 32), tmp_path / "weights.safetensors")
    engine = reference_engine(reading.program, tmp_path / "weights.safetensors", Recipe.named("none", 32))
    assert 0.3 < full(engine, np.arange(12)).std() < 3


def test_ties_are_aliased_not_copied(tmp_path: Path) -> None:
    small = synthesize_shape(MOR, tmp_path / "small")
    large = synthesize_shape(replace(MOR, repeats=2), tmp_path / "large")  # 1 + 2 × 3 + 1: one layer more
    size = {f: (f / "pytorch_model.bin").stat().st_size for f in (small, large)}
    assert size[small] < size[large]
    checkpoint = Checkpoint.open(small)
    assert spec_of(find_family(checkpoint).read(checkpoint).program).segments == (
        Segment(1),
        Segment(2, 3),
        Segment(1),
    )


def test_activations_stay_sane_in_depth(tmp_path: Path) -> None:
    folder = synthesize_shape(replace(MOR, layers=62), tmp_path / "deep", dtype="float32")
    checkpoint = Checkpoint.open(folder)
    values = logits(find_family(checkpoint).read(checkpoint), torch.arange(12))
    assert 0.3 < values.std() < 3


def test_seed_and_dtype(tmp_path: Path) -> None:
    folders = [
        synthesize_shape(MOR, tmp_path / str(i), seed=seed, dtype="float32")
        for i, seed in enumerate((0, 0, 1))
    ]
    a, b, c = (Checkpoint.open(f).tensor("model.embed_tokens.weight") for f in folders)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_sharded_when_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(MOR, family="ouro", layers=2, kv_heads=4, tied=False)
    monkeypatch.setattr("edgeloop.export.synth_weights.SHARD_BYTES", 50_000)
    folder = synthesize_shape(shape, tmp_path / "ouro")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    checkpoint = Checkpoint.open(folder)
    assert spec_of(find_family(checkpoint).read(checkpoint).program).segments == (Segment(2, 3),)


def test_tokenizer_decodes_every_id(tmp_path: Path) -> None:
    folder = synthesize_shape(MOR, tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    text = "Grüße, 世界 <|filler_300|>\n"
    ids = tokenizer.encode(text).ids
    assert max(ids) < 257
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([300]) == "<|filler_300|>"
    assert tokenizer.id_to_token(0) == "<|endoftext|>"
    assert tokenizer.decode([0]) == ""
    assert all(isinstance(tokenizer.decode([i]), str) for i in range(VOCAB))


def test_existing_folders(tmp_path: Path) -> None:
    out = synthesize_shape(MOR, tmp_path / "m")
    with pytest.raises(UsageError, match="exists"):
        synthesize_shape(MOR, out)
    synthesize_shape(MOR, out, force=True)
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="not a checkpoint"):
        synthesize_shape(MOR, precious, force=True)
    assert {p.name for p in tmp_path.iterdir()} == {"m", "home"}


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeloop.export.synth.write_tokenizer", full)
    with pytest.raises(ExportError, match="No space left"):
        synthesize_shape(MOR, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of 20 kB at most, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    "family", ["mor", "ouro"]
)  # torch.save and safetensors, which say it in their own ways
def test_a_full_disk_is_named_as_such(tmp_path: Path, small_disk: None, family: str) -> None:
    shape = replace(MOR, family=family, kv_heads=4, tied=family == "mor")
    with pytest.raises(ExportError, match=r"cannot write .*m: File too large; nothing was changed there"):
        synthesize_shape(shape, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_other_failures_are_not_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    for place in ("torch.randn", "torch.save"):
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            with pytest.raises(RuntimeError, match="mat1 and mat2"):
                synthesize_shape(MOR, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no shape named 'gpt-9'; choose one of mor-360m-r3"):
        synthesize("gpt-9", tmp_path / "m")
    with pytest.raises(UsageError, match="dtype"):
        synthesize("mor-360m-r3", tmp_path / "m", dtype="int8")
    with pytest.raises(UsageError, match="LoRA"):
        synthesize("ouro-1.4b", tmp_path / "m", lora_rank=4)
