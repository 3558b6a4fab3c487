"""The tokenizer.json that ships has the ids of AutoTokenizer, for folders that ``save_pretrained`` writes.

The tokenizers are tiny and made here; the oracle is transformers, given the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizer_folders import LLAMA, MADE, PADDING, TEXTS, TRUNCATION, agree, byte_level, pieces, write
from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer

from edgeloop.export.pipeline import export_bundle
from edgeloop.export.text.vocabulary import read_vocabulary
from edgeloop.runtime import Session

TOKENS = [
    AddedToken("<extra>", special=True),
    AddedToken("<strip>", lstrip=True, rstrip=True),
    AddedToken("<word>", single_word=True),
    AddedToken("<Norm>", normalized=True),
    AddedToken("<new>", normalized=False),
]
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "LlamaTokenizer": [
        {"add_prefix_space": False},
        {"legacy": True},
        {"add_bos_token": False, "add_eos_token": True},
    ],
    "GPT2Tokenizer": [{"add_prefix_space": True}, {"add_bos_token": True}],
    "GPTNeoXTokenizer": [{"add_prefix_space": True, "add_eos_token": True}],
    "CodeLlamaTokenizer": [{"add_prefix_space": False}],
    "BertTokenizer": [{"do_lower_case": False}, {"strip_accents": False, "tokenize_chinese_chars": False}],
    "AlbertTokenizer": [{"do_lower_case": False, "keep_accents": True, "add_prefix_space": False}],
    "T5Tokenizer": [{"extra_ids": 4}],
    "XLMRobertaTokenizer": [{"add_prefix_space": False}],
    "RobertaTokenizer": [{"add_prefix_space": True, "trim_offsets": False}],
}
CASES = [(name, {}) for name in MADE] + [(name, each) for name, all_ in SWITCHES.items() for each in all_]


@pytest.mark.parametrize(("name", "switches"), CASES, ids=str)
def test_what_save_pretrained_writes(tmp_path: Path, name: str, switches: dict[str, Any]) -> None:
    source = write(tmp_path / "source", MADE[name](), switches | {"tokenizer_class": name})
    chosen = AutoTokenizer.from_pretrained(source)
    assert type(chosen) is getattr(transformers, name)
    agree(source, tmp_path, chosen)
    tokenizer = type(chosen).from_pretrained(source, **switches)
    tokenizer.add_tokens(TOKENS)
    tokenizer.add_special_tokens(
        {"pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.save_pretrained(tmp_path / "saved")
    agree(tmp_path / "saved", tmp_path)


def test_words_are_not_split_at_random(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "f", byte_level(), change=lambda file: file["model"].update(dropout=0.5))
    found = read_vocabulary(folder, LLAMA, 1000)
    assert found
    assert json.loads(found.data)["model"]["dropout"] is None
    assert "splits words at random" in caplog.text


def test_a_file_that_says_it_all_ships_as_it_is(tmp_path: Path) -> None:
    """Its hash is the one that its publisher knows."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    folder = write(tmp_path / "f", byte_level(), config)
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads((folder / "tokenizer.json").read_text()), indent=1)
    )
    found = read_vocabulary(folder, LLAMA, 1000)
    assert found
    assert found.data == (folder / "tokenizer.json").read_bytes()
    assert found.special_tokens == {"eos_token": "<|endoftext|>"}


def test_merges_stay_as_they_are_written(tmp_path: Path) -> None:
    """Older hosts read "a b" and not ["a", "b"]."""

    def old(file: dict[str, Any]) -> None:
        file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
        file["padding"] = PADDING

    found = read_vocabulary(write(tmp_path / "f", byte_level(), change=old), LLAMA, 1000)
    assert found
    assert all(isinstance(pair, str) for pair in json.loads(found.data)["model"]["merges"])


@pytest.mark.parametrize("split", [False, True])
def test_a_session_has_the_ids_of_the_folder(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None, split: bool
) -> None:
    """Prompts and conversations, from a folder whose tokenizer.json alone would give others."""
    folder = tiny("llama")
    turn = "{{ pad_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    template = "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "chat_template": template,
        "split_special_tokens": split,
    }
    model = json.loads((folder / "config.json").read_text())
    write(folder, pieces(), config, model=model, change=lambda file: file.update(truncation=TRUNCATION))
    oracle = AutoTokenizer.from_pretrained(folder)
    out = export_bundle(folder, tmp_path / "b", quant="none").bundle
    turns = [{"role": "user", "content": "the <|im_end|> fox"}, {"role": "assistant", "content": " a dog"}]
    with Session.open(out, engine="reference") as session:
        for text in TEXTS:
            assert session.tokenizer.encode(text) == oracle(text)["input_ids"]
        found = session.encode_chat(turns)
    wanted = oracle.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert found == wanted
    assert wanted.count(oracle.convert_tokens_to_ids("<|im_end|>")) == (0 if split else 3)
    shipped = Engine.from_file(str(out / "tokenizer.json"))  # as other hosts open it
    assert shipped.encode(TEXTS[0]).ids == oracle(TEXTS[0])["input_ids"]
