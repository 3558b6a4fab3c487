"""The class that reads a folder's tokenizer.json is the one that transformers chooses, or a warning by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import LLAMA, MADE, agree, byte_level, pieces, write
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer
from transformers.models.auto import tokenization_auto as auto

from edgeloop.export.text.tokenizer_classes import AS_IT_IS, MISNAMED, OWN
from edgeloop.export.text.vocabulary import read_vocabulary
from edgeloop.runtime.text.tokenizer import Tokenizer

CHOSEN: list[tuple[str, dict[str, Any], str | None, Callable[[], Engine]]] = [
    ("LlamaTokenizer", {"model_type": "llama"}, "LlamaTokenizer", pieces),
    ("TokenizersBackend", {"model_type": "llama"}, "LlamaTokenizerFast", byte_level),
    ("LlamaTokenizer", {"model_type": "llama", "tokenizer_class": "LlamaTokenizerFast"}, None, pieces),
    ("TokenizersBackend", {"model_type": "mistral"}, "LlamaTokenizer", pieces),
    ("TokenizersBackend", {"model_type": "mistral"}, None, pieces),
    ("LlamaTokenizer", {"model_type": "ouro"}, "LlamaTokenizer", pieces),
    ("GPT2Tokenizer", {"model_type": "ouro"}, "GPT2Tokenizer", byte_level),
    ("TokenizersBackend", {"model_type": "edgeloop"}, None, byte_level),
    ("Qwen2Tokenizer", {"model_type": "qwen2"}, "LlamaTokenizerFast", byte_level),
    ("Qwen2Tokenizer", {"model_type": "qwen3"}, None, byte_level),
    ("TokenizersBackend", {"model_type": "qwen3"}, "PreTrainedTokenizerFast", byte_level),
    ("LlamaTokenizer", {"model_type": "qwen3"}, "LlamaTokenizer", pieces),
    ("TokenizersBackend", {"model_type": "phi3"}, "LlamaTokenizer", pieces),
    ("TokenizersBackend", {"model_type": "llama"}, "BloomTokenizerFast", byte_level),
    ("AlbertTokenizer", {"model_type": "albert"}, None, MADE["AlbertTokenizer"]),
    ("AlbertTokenizer", {"model_type": "albert"}, "AlbertTokenizerFast", MADE["AlbertTokenizer"]),
]


@pytest.mark.parametrize(("wanted", "model", "name", "make"), CHOSEN)
def test_the_class_that_is_chosen(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wanted: str,
    model: dict[str, Any],
    name: str | None,
    make: Callable[[], Engine],
) -> None:
    config = {"tokenizer_class": name} if name else None
    folder = write(tmp_path / "f", make(), config, model=model)
    oracle = AutoTokenizer.from_pretrained(folder)
    assert type(oracle).__name__ == wanted
    agree(folder, tmp_path, oracle)
    assert not [record for record in caplog.records if record.name.startswith("edgeloop")]


def test_the_tables_of_classes_are_those_of_transformers() -> None:
    names = auto.TOKENIZER_MAPPING_NAMES
    backend = ("TokenizersBackend", "MistralCommonBackend")
    for model_type, name in OWN.items():
        assert (name, names[model_type]) in {(name, name)} | {("TokenizersBackend", b) for b in backend}
        assert (model_type in MISNAMED) == (model_type in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
    for name in AS_IT_IS:
        assert auto.tokenizer_class_from_name(name).__name__ in ("TokenizersBackend", "PythonBackend")
    for model_type in ("llama", "ouro", "edgeloop"):  # those of the families that are read
        assert model_type not in names


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tokenizer_class": "NougatTokenizer"}, "tokenizer_class NougatTokenizer is not one whose rules"),
        (
            {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
            "Own is code of the checkpoint",
        ),
        (
            {"tokenizer_class": "T5Tokenizer"},
            "T5Tokenizer wants a Unigram vocabulary, and tokenizer.json has BPE",
        ),
        ({"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "fast_tokenizer_files is not read"),
        ({"fix_mistral_regex": True}, "fix_mistral_regex is not read"),
    ],
)
def test_what_is_not_taken_over_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: dict[str, Any], said: str
) -> None:
    folder = write(tmp_path / "f", byte_level(), config)
    found = read_vocabulary(folder, LLAMA, 1000)
    assert said in caplog.text
    assert caplog.text.count("WARNING") == 1
    assert found
    assert found.data == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "model_type"), [("AlbertTokenizer", "albert"), ("BertTokenizer", "bert"), (None, "albert")]
)
def test_pairs_of_texts_have_types(tmp_path: Path, name: str | None, model_type: str) -> None:
    """Of the classes that encoders' folders have."""
    made, config = MADE[name or "AlbertTokenizer"](), {"tokenizer_class": name} if name else None
    folder = write(tmp_path / "f", made, config, model={"model_type": model_type})
    found = read_vocabulary(folder, {"model_type": model_type}, 1000)
    assert found
    found.write(tmp_path)
    pair = "Once upon a time", "there was a king"
    ids, types = Tokenizer.open(tmp_path / "tokenizer.json").encode_typed(*pair)
    wanted = AutoTokenizer.from_pretrained(folder)(*pair, return_token_type_ids=True)
    assert (ids, types) == (wanted["input_ids"], wanted["token_type_ids"])
    assert set(types) == {0, 1}
