"""The tokenizer.json that ships has the ids of AutoTokenizer, for folders that ``save_pretrained`` writes and others.

The tokenizers are tiny and made here; the oracle is transformers, given the same folder. What ships is read by the
tokenizers library alone, as a host does that knows nothing of the files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer
from transformers.models.auto import tokenization_auto as auto

from edgeloop.export.pipeline import export_bundle
from edgeloop.export.text.named_tokens import EXTRA, NAMED, OLD_EXTRA
from edgeloop.export.text.tokenizer_classes import AS_IT_IS, MISNAMED, OWN
from edgeloop.export.text.vocabulary import Vocabulary, read_vocabulary
from edgeloop.runtime import Session
from edgeloop.runtime.errors import CheckpointError

WORDS = "the quick brown fox jumps over a lazy dog, and again: 'round we go! it's 2024 … naïve café 你好 "
TEXTS = [
    "the quick brown fox",
    " the  quick",
    "",
    "  ",
    "it's 12345 'tis we'll … naïve CAFÉ 你好 👩‍👩‍👧 e\u0301",
    "<s>the</s> fox<|endoftext|> [CLS] dog<pad>",
    "a <extra> b<extra>c  <strip> d e<word>f <word> g <new><Norm> <norm>é",
    "the\n\n fox\t<|im_start|>user\nfox<|im_end|> <image>",
    "<unk><mask> [MASK] ▁the ▁ <0x41> ``the'' <extra_id_3>",
]
LLAMA = {"model_type": "llama"}


def byte_level(end: str = "<|endoftext|>", **parts: Any) -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [end] if end else []
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator([WORDS * 4], trainer)
    return with_parts(engine, parts)


def pieces(**parts: Any) -> Engine:
    """Llama 2's kind: BPE over ▁pieces with bytes for what is unknown."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *sorted(set(WORDS) - {" "})]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "f"), ("o", "x"), ("▁f", "ox"), ("a", "i")]
    vocab += [a + b for a, b in merges]
    model = models.BPE(
        {p: i for i, p in enumerate(vocab)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    engine = Engine(model)
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return with_parts(engine, parts)


def unigram(first: list[str], **parts: Any) -> Engine:
    vocab = [(token, 0.0) for token in first]
    vocab += [("▁", -2.0), ("▁the", -3.0), ("▁fox", -3.5)]
    vocab += [(c, -5.0) for c in sorted(set(WORDS.lower()) - {" "})]
    engine = Engine(models.Unigram(vocab, unk_id=first.index("<unk>")))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    engine.add_special_tokens(first)
    return with_parts(engine, parts)


def word_pieces(**parts: Any) -> Engine:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set(WORDS.lower()) - {" "})
    tokens = [*special, *letters, *(f"##{c}" for c in letters), "the", "fox", "##ox"]
    engine = Engine(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    engine.add_special_tokens(special)
    return with_parts(engine, parts)


def with_parts(engine: Engine, parts: dict[str, Any]) -> Engine:
    for name, value in parts.items():
        setattr(engine, name, value)
    return engine


def write(
    folder: Path,
    engine: Engine,
    config: dict[str, Any] | None = None,
    *,
    model: dict[str, Any] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda file: None,
    **files: Any,
) -> Path:
    """A folder by hand: tokenizer.json (``change`` edits it), tokenizer_config.json, config.json, other files."""
    folder.mkdir(exist_ok=True)
    file = json.loads(engine.to_str())
    change(file)
    written = {"tokenizer": file, "config": LLAMA if model is None else model, "tokenizer_config": config}
    for name, value in (written | files).items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def agree(folder: Path, tmp_path: Path, oracle: Any = None) -> Vocabulary:
    """Ids, decoded texts and special tokens are those of transformers; returns what ships."""
    path = folder / "config.json"
    if not path.exists():
        path.write_text(json.dumps(LLAMA))
    oracle = oracle or AutoTokenizer.from_pretrained(folder)
    found = read_vocabulary(folder, json.loads(path.read_text()), 1 << 20)
    assert found is not None
    shipped = tmp_path / "shipped.json"
    shipped.write_bytes(found.data)
    engine = Engine.from_file(str(shipped))
    engine.encode_special_tokens = found.split_special_tokens
    for text in TEXTS:
        for special in (True, False):
            wanted = oracle(text, add_special_tokens=special)["input_ids"]
            ids = engine.encode(text, add_special_tokens=special).ids
            assert ids == wanted, (type(oracle).__name__, text)
        for skip in (True, False):
            assert engine.decode(wanted, skip_special_tokens=skip) == oracle.decode(
                wanted, skip_special_tokens=skip
            )
    assert found.special_tokens == oracle.special_tokens_map
    assert engine.get_vocab() == oracle.get_vocab()
    return found


# What save_pretrained writes

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MADE: dict[str, Callable[[], Engine]] = {
    "PreTrainedTokenizerFast": byte_level,
    "LlamaTokenizer": pieces,
    "CodeLlamaTokenizer": pieces,
    "GPT2Tokenizer": byte_level,
    "GPTNeoXTokenizer": byte_level,
    "Qwen2Tokenizer": byte_level,
    "Qwen3_5Tokenizer": byte_level,
    "CohereTokenizer": byte_level,
    "GemmaTokenizer": pieces,
    "RobertaTokenizer": lambda: byte_level("<s>"),
    "T5Tokenizer": lambda: unigram(["<pad>", "</s>", "<unk>"]),
    "AlbertTokenizer": lambda: unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    "XLMRobertaTokenizer": lambda: unigram(["<s>", "<pad>", "</s>", "<unk>"]),
    "BertTokenizer": word_pieces,
}
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


# Folders by hand: of older versions, of other people


def token(text: str, number: int | None = None, **flags: bool) -> dict[str, Any]:
    found = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False) | flags
    return {"content": text, **found} | ({} if number is None else {"id": number})


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
PADDING = {
    "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
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


# What is not taken over is said


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


# In a bundle


def test_a_session_has_the_ids_of_the_folder(
    tiny: Callable[[str], Path], tmp_path: Path, quick_target: None
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
    assert wanted.count(oracle.convert_tokens_to_ids("<|im_end|>")) == 3
    shipped = Engine.from_file(str(out / "tokenizer.json"))  # as other hosts open it
    assert shipped.encode(TEXTS[0]).ids == oracle(TEXTS[0])["input_ids"]
