"""Synthetic checkpoints: the right sizes, the authors' formats, safe writing."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forward import logits
from tiny import MOR, VOCAB
from tokenizers import Tokenizer

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.synth import SHAPES, synthesize, synthesize_shape
from edgeloop.runtime.errors import ExportError, UsageError


def test_shapes_are_the_real_ones() -> None:
    layers = {name: (len(s.stored_layers), s.applied_layers) for name, s in SHAPES.items()}
    assert layers == {
        "mor-360m-r3": (32, 32),
        "smollm-135m-r3": (29, 29),
        "mobilellm-ls-125m": (30, 60),
        "ouro-1.4b": (24, 96),
    }
    assert len(set(SHAPES["mor-360m-r3"].stored_layers)) == 12
    assert {s.head_dim for s in SHAPES.values()} == {64, 128}


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
