"""Files beside tokenizer.json, in folders of older versions and of other people: read as transformers reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizer_folders import (
    LLAMA,
    MADE,
    PADDING,
    TRUNCATION,
    agree,
    byte_level,
    pieces,
    token,
    word_pieces,
    write,
)
from transformers import AutoTokenizer

from edgeloop.export.text.named_tokens import EXTRA, NAMED, OLD_EXTRA
from edgeloop.export.text.vocabulary import read_vocabulary
from edgeloop.runtime.errors import CheckpointError

NAMES = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<|endoftext|>",
    "<new>",
    "<Norm>",
    "<word>",
    "<strip>",
    "fox",
    "<mask>",
]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
BOOLEANS = ("add_prefix_space", "legacy", "do_lower_case", "keep_accents", "trim_offsets", "add_bos_token",
            "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens")  # fmt: skip
FOLDERS: dict[str, dict[str, Any]] = {
    "tokenizer.json alone": {},
    "padding": {"change": lambda file: file.update(padding=PADDING)},
    "truncation": {"change": lambda file: file.update(truncation=TRUNCATION)},
    "padding, no pad token": {
        "change": lambda file: file.update(padding=PADDING),
        "config": {"pad_token": None},
    },
    "named": {
        "config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "image_token": "<image>"}
    },
    "named with flags": {
        "config": {
            "bos_token": {"__type": "AddedToken", **token("<s>", lstrip=True)},
            "image_token": {"__type": "AddedToken", **token("<image>", rstrip=True)},
        }
    },
    "added_tokens_decoder": {
        "config": {
            "added_tokens_decoder": {
                "331": token("<strip>", lstrip=True, rstrip=True),
                "330": token("<s>", special=True),
                "0": token("<|endoftext|>", special=True),
                "332": token("<Norm>", normalized=True),
            },
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<strip>"],
        },
        "special_tokens_map": {"bos_token": "<never read>"},
    },
    "ids with a gap": {"config": {"added_tokens_decoder": {"1000": token("<s>"), "400": token("<new>")}}},
    "special_tokens_map": {
        "config": {"bos_token": "<s>", "extra_special_tokens": ["<extra>"]},
        "special_tokens_map": {
            "bos_token": token("</s>", rstrip=True, special=False),
            "unk_token": "<unk>",
            "extra_special_tokens": ["<|im_start|>", {"content": "<|im_end|>", "lstrip": True}, "<extra>"],
        },
    },
    "special_tokens_map alone": {
        "special_tokens_map": {"eos_token": "</s>", "additional_special_tokens": ["<|im_start|>"]},
    },
    "added_tokens": {
        "config": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens": {"<|im_end|>": 332, "<|im_start|>": 331, "<Norm>": 330, "fox": 333},
    },
    "special once": {
        "config": {
            "eos_token": "</s>",
            "extra_special_tokens": [{"__type": "AddedToken", **token("<extra>")}],
        },
        "special_tokens_map": {"image_token": "<image>", "extra_special_tokens": [{"content": "<strip>"}]},
        "added_tokens": {"<|endoftext|>": 400, "<extra>": 401},
    },
    "extra by name": {"config": {"extra_special_tokens": {"image_token": "<image>", "boi": "<|im_start|>"}}},
    "switches that are not read": {
        "config": {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": True}
    },
    "split": {"config": {"split_special_tokens": True, "eos_token": "<|endoftext|>"}},
    "tidy, not for BPE": {"config": {"clean_up_tokenization_spaces": True}},
    "tidy all the same": {
        "config": {
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        }
    },
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", [None, "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_what_other_files_say(tmp_path: Path, name: str, kind: str | None) -> None:
    said = dict(FOLDERS[name])
    config = said.pop("config", None)
    if kind:
        config = {"tokenizer_class": kind} | (config or {})
    agree(write(tmp_path / "f", byte_level(), config, **said), tmp_path)


@pytest.mark.parametrize("name", ["T5Tokenizer", "CodeLlamaTokenizer", "BertTokenizer"])
def test_a_class_with_tokens_of_its_own_and_older_files(tmp_path: Path, name: str) -> None:
    files = {
        "special_tokens_map": {"additional_special_tokens": ["<|im_start|>"], "mask_token": token("<mask>")},
        "added_tokens": {"<|im_start|>": 900, "<new>": 901},
    }
    config = {"tokenizer_class": name, "clean_up_tokenization_spaces": True}
    agree(write(tmp_path / "f", MADE[name](), config, **files), tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_folders_at_random(tmp_path: Path, seed: int) -> None:
    """Whatever is named where: as long as transformers reads the folder."""
    random = Random(seed)
    name = random.choice([name for name in MADE if name != "BertTokenizer"])

    def flagged(**more: Any) -> dict[str, Any]:
        return {"content": random.choice(NAMES)} | {flag: random.random() < 0.3 for flag in FLAGS} | more

    def named() -> Any:
        return random.choice(NAMES) if random.random() < 0.6 else flagged(__type="AddedToken")

    def some(keys: Iterable[str], make: Callable[[], Any]) -> dict[str, Any]:
        return {key: make() for key in keys if random.random() < 0.2}

    config = {"tokenizer_class": random.choice([name, name, "TokenizersBackend"])}
    config |= some([*NAMED, "image_token"], named)
    config |= some((EXTRA, OLD_EXTRA), lambda: [named() for _ in range(3)])
    config |= some(BOOLEANS, lambda: random.random() < 0.5)
    listed = [flagged(content=text, special=random.random() < 0.5) for text in random.sample(NAMES, 4)]
    decoder = {str(random.randrange(400)): each for each in listed}
    config |= some(["added_tokens_decoder"], lambda: decoder)
    files = {
        "special_tokens_map": some([*NAMED, "image_token"], lambda: random.choice(NAMES))
        | some([EXTRA], lambda: [random.choice(NAMES), flagged()]),
        "added_tokens": some(NAMES, lambda: random.randrange(400)),
    }
    model = {"model_type": random.choice(["llama", "mistral", "ouro", "qwen3"])}
    folder = write(tmp_path / "f", MADE[name](), config, model=model, **files)
    try:
        oracle = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        pytest.skip(f"transformers does not read this folder: {error}")
    agree(folder, tmp_path, oracle)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config": {"bos_token": 5}}, "tokenizer_config.json: bos_token: 5 is no token"),
        ({"config": {"eos_token": ["a"]}}, r"eos_token: \['a'\] is no token"),
        ({"config": {"eos_token": {"content": "a", "lstrip": 1}}}, "eos_token: .* is no token"),
        ({"config": {"extra_special_tokens": "abc"}}, "extra_special_tokens is 'abc'; wanted a list"),
        ({"config": {"extra_special_tokens": [None]}}, "extra_special_tokens: None is no token"),
        ({"config": {"added_tokens_decoder": ["a"]}}, "added_tokens_decoder is .* wanted an object"),
        ({"config": {"added_tokens_decoder": {"x": token("a")}}}, "added_tokens_decoder has 'x'"),
        ({"config": {"added_tokens_decoder": {"99999999999": token("a")}}}, "is no token id"),
        (
            {"config": {"tokenizer_class": "LlamaTokenizer", "legacy": "yes"}, "make": pieces},
            "legacy is 'yes'",
        ),
        (
            {"config": {"tokenizer_class": "T5Tokenizer", "extra_ids": -1}, "make": MADE["T5Tokenizer"]},
            "extra_ids is -1",
        ),
        ({"added_tokens": {"a": "b"}}, "added_tokens.json: 'b' is no token id"),
        (
            {"special_tokens_map": {"extra_special_tokens": 5}},
            "special_tokens_map.json: extra_special_tokens is 5",
        ),
        ({"special_tokens_map": {"bos_token": {"content": None}}}, "bos_token: .* is no token"),
        ({"config": {"eos_token": "\ud800"}}, r"eos_token: '\\ud800' is no token"),  # half of a character
        ({"config": {"image_token": "\ud800"}}, r"image_token: '\\ud800' is no token"),
        ({"config": {"extra_special_tokens": ["\ud800"]}}, r"extra_special_tokens: '\\ud800' is no token"),
        ({"config": {"added_tokens_decoder": {"9": token("\ud800")}}}, r"'\\ud800' is no token"),
        ({"added_tokens": {"\ud800": 9}}, r"added_tokens.json: '\\ud800' is no token"),
        (
            {"config": {"tokenizer_class": "BertTokenizer", "cls_token": None}, "make": word_pieces},
            "names no cls_token",
        ),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    files = dict(files)
    folder = write(tmp_path / "f", files.pop("make", byte_level)(), files.pop("config", None), **files)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_vocabulary(folder, LLAMA, 1000)
    assert "\n" not in str(caught.value)
