"""``edgeloop encode`` and ``Session.encode`` with a tokenizer: as transformers encodes texts; and who is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import ROOT, blocks
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AlbertConfig, AlbertForMaskedLM, PreTrainedTokenizerFast

from edgeloop.apps.cli import main
from edgeloop.runtime import BatchServer, Session
from edgeloop.runtime.decode.encoding import BATCH
from edgeloop.runtime.errors import ContextError, UsageError

Command = Callable[..., tuple[int, str, str]]
WORDS = ["the", "king", "said", "nothing", "nobody", "spoke", "a", "queen", "who", "asked", "why"]
TEXTS = ["The king said nothing", "nobody spoke", "Why"]
REFUSED = {
    "run": ["-p", "the king"],
    "chat": [],
    "eval": ["--text", "some.txt"],
    "calibrate": ["--text", "some.txt"],
    "drift": ["--against", "checkpoint", "--text", "some.txt"],
    "bench": [],
    "bench --users": ["--users", "2"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A bundle in float32, with transformers' model and tokenizer of the same checkpoint."""
    root = tmp_path_factory.mktemp("encode")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    engine = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=engine, unk_token="<unk>", pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=len(vocabulary), embedding_size=12, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    theirs = AlbertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (name.endswith("orm.weight")))
    theirs.save_pretrained(root / "checkpoint")
    tokenizer.save_pretrained(root / "checkpoint")
    (root / "some.txt").write_text("the king said nothing " * 40)
    checkpoint, out = str(root / "checkpoint"), str(root / "bundle")
    assert main(["export", checkpoint, "-o", out, "--quant", "none", "--json"]) == 0
    return root / "bundle", theirs, tokenizer


def hidden(model: tuple[Path, Any, Any], texts: list[Any], layers: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """transformers' states [B, S, D] after so many layers, and its mask."""
    _, theirs, tokenizer = model
    given = tokenizer(
        [t if isinstance(t, str) else t[0] for t in texts],
        None if isinstance(texts[0], str) else [t[1] for t in texts],
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    with torch.no_grad():
        found = theirs.albert(**given, output_hidden_states=True).hidden_states[layers]
    return found.numpy(), given["attention_mask"].numpy().astype(bool)


def test_texts_as_transformers_encodes_them(model: tuple[Path, Any, Any]) -> None:
    with Session.open(model[0]) as session:
        for depth in (1, 3):
            found, (wanted, mask) = session.encode(TEXTS, depth=depth), hidden(model, TEXTS, depth)
            assert found.tokens.tolist() == [6, 4, 3]
            assert np.abs(found.states - wanted)[mask].max() < 1e-5
            assert not found.states[~mask].any()
        mean = (wanted * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        assert np.abs(found.mean - mean).max() < 1e-5
        np.testing.assert_array_equal(found.first, found.states[:, 0])
        np.testing.assert_allclose(session.encode(TEXTS[0]).states[0], found.states[0], atol=1e-6)


def test_pairs_have_types(model: tuple[Path, Any, Any]) -> None:
    pairs = [("Who asked", "Nobody"), ("Why", "The king said nothing")]
    wanted, mask = hidden(model, pairs)
    with Session.open(model[0]) as session:
        assert np.abs(session.encode(pairs).states - wanted)[mask].max() < 1e-5


def test_more_texts_than_a_call_takes(model: tuple[Path, Any, Any]) -> None:
    texts = [" ".join(WORDS[: 1 + i % 7]) for i in range(2 * BATCH + 1)]
    wanted, mask = hidden(model, texts)
    with Session.open(model[0], engine="reference") as session:
        found = session.encode(texts)
    assert found.states.shape == wanted.shape
    assert np.abs(found.states - wanted)[mask].max() < 1e-5
    assert not found.states[~mask].any()


def test_the_page(
    model: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """docs/encoders.md: its Python, and its commands but for the export, on a model of 3 layers."""
    page = ROOT / "docs" / "encoders.md"
    (tmp_path / "bundle").symlink_to(model[0])
    (tmp_path / "lines.txt").write_text("The king said nothing\nWhy\n")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(page, "python")
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    found = names["found"]
    assert found.states.shape == (*found.logits.shape[:2], 24)
    assert found.mean.shape == found.first.shape == (2, 24)
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if " encode " in line]
    assert len(lines) > 3
    for line in lines:
        code, _, err = command(*shlex.split(line.replace("--depth 6", "--depth 2"), comments=True)[1:])
        assert code == 0, f"{line}\n{err}"


def test_the_verb(model: tuple[Path, Any, Any], command: Command, tmp_path: Path) -> None:
    wanted, mask = hidden(model, TEXTS, 2)
    asked = [word for text in TEXTS for word in ("-p", text)]
    code, out, err = command("encode", model[0], *asked, "--depth", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["shape"], found["tokens"], found["depth"]) == ([3, 24], [6, 4, 3], 2)
    mean = (wanted * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    assert np.abs(np.array(found["vectors"]) - mean).max() < 1e-5
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n\n")
    path = tmp_path / "states.out"
    code, out, err = command(
        "encode", model[0], "--text", tmp_path / "lines.txt", "--depth", 2, "--pool", "none", "--npy", path
    )
    assert code == 0, err
    assert np.abs(np.load(path) - wanted)[mask].max() < 1e-5
    assert "nobody spoke" in out
    assert f"[3 × 6 × 24 float32 in {path}, after depth 2" in err
    length = np.linalg.norm(mean[1])
    assert f"{length:.4f}" in out


def test_a_file_of_many_lines(model: tuple[Path, Any, Any], command: Command, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[: 1 + i % 5]) for i in range(140)]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    path = tmp_path / "v.npy"
    code, _, err = command("encode", model[0], "--text", tmp_path / "lines.txt", "--npy", path)
    assert code == 0, err
    wanted, mask = hidden(model, texts)
    assert np.abs(np.load(path) - (wanted * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]).max() < 1e-5


def test_pools(model: tuple[Path, Any, Any], command: Command) -> None:
    wanted, _ = hidden(model, TEXTS)
    for pool, vector in (("first", wanted[0, 0]), ("none", wanted[0, :6])):
        code, out, err = command("encode", model[0], "-p", TEXTS[0], "--pool", pool, "--json")
        assert code == 0, err
        assert np.abs(np.array(json.loads(out)["vectors"][0]) - vector).max() < 1e-5


@pytest.mark.parametrize("case", REFUSED)
def test_other_verbs_refuse_an_encoder(model: tuple[Path, Any, Any], command: Command, case: str) -> None:
    words = [str(model[0].parent / word) if word == "some.txt" else word for word in REFUSED[case]]
    code, _, err = command(case.split()[0], model[0], *words)
    assert code == 2
    assert err.splitlines()[-1].endswith("bundle is an encoder, which continues no text: use edgeloop encode")


def test_nor_is_it_compared_or_given_a_cache(
    model: tuple[Path, Any, Any], command: Command, tmp_path: Path
) -> None:
    checkpoint = model[0].parent / "checkpoint"
    code, _, err = command("compare", checkpoint)
    assert code == 2
    assert "is an encoder" in err.splitlines()[-1]
    for name, value in (("window", 4), ("kv", "shared")):
        code, _, err = command("export", checkpoint, "-o", tmp_path / "bundle", f"--{name}", value)
        assert code == 2
        assert f"an encoder keeps no K/V, found {name}; leave --{name} out" in err.splitlines()[-1]


def test_every_byte_is_accounted_for(model: tuple[Path, Any, Any], command: Command) -> None:
    code, out, err = command("audit", model[0])
    assert code == 0, out + err


def test_what_generates_refuses_an_encoder(model: tuple[Path, Any, Any]) -> None:
    with Session.open(model[0]) as session:
        calls: list[Callable[[], object]] = [
            lambda: session.generate("the king"),
            lambda: session.logits([2, 5, 3]),
            lambda: session.perplexity([2, 5, 3]),
            lambda: session.evaluate([2, 5, 3]),
            lambda: BatchServer.open(model[0]),
        ]
        for call in calls:
            with pytest.raises(
                UsageError, match="is an encoder, which continues no text: use edgeloop encode"
            ):
                call()


def test_a_decoder_does_not_encode(bundle: Path, command: Command) -> None:
    code, _, err = command("encode", bundle, "-p", "the king")
    assert code == 2
    assert err.splitlines()[-1].endswith("is a decoder, whose tokens see no later ones: use edgeloop run")


@pytest.mark.parametrize(
    ("given", "kind", "line"),
    [
        (([],), UsageError, "no text to encode"),
        ((["the"], [[0, 0, 0]]), UsageError, "types= are for texts of token ids"),
        (([[2, 5, 3]], [[0, 0]]), UsageError, "2 types of 3 tokens"),
        (([[2, 5, 3]], [[0, 2, 0]]), UsageError, "types have 2, wanted 0 to 1"),
        (([[2, 99]],), UsageError, "token id 99 is not in the vocabulary"),
        (([[2, 5], [2, 5.5]],), UsageError, "token ids of type float64, wanted integers"),
        (([2.5],), UsageError, "found a value of type float, wanted token ids"),
        ((7,), UsageError, "found a value of type int, wanted token ids"),
        (([("a", "b", "c")],), UsageError, "a tuple of 3 texts, wanted one text or a pair"),
        (([[2] * 17],), ContextError, "a text has 17 tokens, the model reads 16"),
    ],
)
def test_what_cannot_be_encoded(
    model: tuple[Path, Any, Any], given: tuple[Any, ...], kind: type[Exception], line: str
) -> None:
    with Session.open(model[0], engine="reference") as session:
        with pytest.raises(kind, match="^[^\n]*$") as caught:
            session.encode(*given)
        assert line in str(caught.value)
        for depth in (0, 4):
            with pytest.raises(UsageError, match=f"depth is {depth}, wanted 1 to 3"):
                session.encode("the", depth=depth)
    with pytest.raises(UsageError, match="closed"):
        session.encode("the")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no text to encode; give -p TEXT or --text FILE"),
        (["-p", "the", "--npy", "nowhere/v.npy"], "there is no folder nowhere; make it first"),
        (["-p", "the", "--depth", "4"], "depth is 4, wanted 1 to 3, which the model has"),
        (["-p", " ".join(WORDS * 2)], "a text has 24 tokens, the model reads 16; shorten it"),
    ],
)
def test_what_the_verb_refuses(
    model: tuple[Path, Any, Any], command: Command, words: list[str], line: str
) -> None:
    code, _, err = command("encode", model[0], *words)
    assert code == 2
    assert line in err.splitlines()[-1]
