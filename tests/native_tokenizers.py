"""Small tokenizers of every kind that the native one reads, with the rules of real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from native_texts import made, tales
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CASELESS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CASELESS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = r"'(?i:[sdmt]|ll|ve|re)" + (
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def special(*names: str, **how: bool) -> list[AddedToken]:
    """Special tokens."""
    return [AddedToken(name, special=True, normalized=False, **how) for name in names]


def trained(engine: Engine, trainer: Any, scripts: bool = True) -> Engine:
    """``engine``, trained on some of the texts that it is tried on."""
    engine.train_from_iterator([*tales(120), *(made(400, 5) if scripts else ())], trainer)
    return engine


def byte_level(
    *splits: Any, size: int = 1200, ignore_merges: bool = False, prefix_space: bool = False
) -> Engine:
    """Byte-level BPE behind ``splits``; without any, by the pattern of GPT-2."""
    engine = Engine(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=not splits)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained(engine, trainer)
    engine.add_special_tokens(special("<|begin|>", "<|end|>"))
    return engine


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    """A Split by a regular expression."""
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def _llama3() -> Engine:
    engine = byte_level(split(LLAMA3), ignore_merges=True)
    begin = ("<|begin|>", engine.token_to_id("<|begin|>"))
    around = processors.TemplateProcessing("<|begin|> $A", special_tokens=[begin])
    engine.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), around])
    return engine


def _roberta() -> Engine:
    engine = byte_level(prefix_space=True)
    engine.add_tokens(
        [
            AddedToken("<mask>", lstrip=True, special=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("tale", single_word=True, normalized=False),
            AddedToken("étale", single_word=True, lstrip=True, rstrip=True),
            AddedToken("<ma"),
            AddedToken("\n\n", normalized=False),
        ]
    )
    begin, end = (engine.token_to_id(name) for name in ("<|begin|>", "<|end|>"))
    engine.post_processor = processors.RobertaProcessing(("<|end|>", end), ("<|begin|>", begin))
    return engine


def _deepseek() -> Engine:
    return byte_level(split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK))


def _starcoder() -> Engine:
    return byte_level(pre_tokenizers.Digits(True), split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"))


def _around(engine: Engine, *around: str) -> Engine:
    """With special tokens before and behind a text."""
    tokens = [(name, engine.token_to_id(name)) for name in around if name != "$A"]
    engine.post_processor = processors.TemplateProcessing(" ".join(around), special_tokens=tokens)
    return engine


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _pieces(normalizer: Any, split_by: Any, *after: Any, few: bool = False) -> Engine:
    """SentencePiece's BPE, which falls back to bytes: of Llama 2, Mistral, Gemma."""
    engine = Engine(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", *(BYTES[:200] if few else BYTES)]
    trained(
        engine,
        trainers.BpeTrainer(vocab_size=1400, special_tokens=names, limit_alphabet=300, show_progress=False),
    )
    state = json.loads(engine.to_str())
    state["added_tokens"] = []
    engine = Engine.from_str(json.dumps(state))
    engine.normalizer, engine.pre_tokenizer = normalizer, split_by
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    engine.decoder = decoders.Sequence(parts)
    engine.add_special_tokens(special("<unk>", "<s>", "</s>"))
    engine.add_tokens([AddedToken("<extra>", normalized=True), AddedToken("tale", single_word=True)])
    return _around(engine, "<s>", "$A")


def _llama2(few: bool = False) -> Engine:
    by = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _pieces(by, None, decoders.Strip(" ", 1, 0), few=few)


def _metaspace(scheme: str, splits: bool) -> Engine:
    by = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=splits)
    return _pieces(normalizers.Strip(), by, decoders.Strip(" ", 1, 0))


def _gemma() -> Engine:
    return _pieces(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))


def charsmap(parts: dict[str, str]) -> bytes:
    """SentencePiece's table of ``parts``: a double array, and what each becomes."""
    units, taken, texts = [0] * 256, {0}, bytearray()
    keys = {key.encode(): text for key, text in parts.items()}

    def place(prefix: bytes, at: int) -> None:
        labels = {key[len(prefix)] for key in keys if key.startswith(prefix) and len(key) > len(prefix)}
        labels |= {0} if prefix in keys else set()
        base = next(b for b in range(1, 1 << 20) if not any((b ^ label) in taken for label in labels))
        size = 1 + max(base ^ label for label in labels)
        units.extend([0] * (size - len(units)))
        taken.update(base ^ label for label in labels)
        units[at] |= (base ^ at) << 10 if prefix else base << 10
        for label in sorted(labels):
            if label == 0:
                units[at] |= 1 << 8
                units[base] = 1 << 31 | len(texts)
                texts.extend(keys[prefix].encode() + b"\0")
            else:
                units[base ^ label] = label
                place(prefix + bytes([label]), base ^ label)

    place(b"", 0)
    data = np.array(units, "<u4").tobytes()
    return len(data).to_bytes(4, "little") + data + bytes(texts)


CHARSMAP = {chr(0xFF21 + i): chr(0x41 + i) for i in range(26)} | {chr(c): "" for c in range(1, 9)}
CHARSMAP |= {
    "ﬁ": "fi",
    "\u3000": " ",
    "\u00a0": " ",
    "\t": " ",
    "\n": " ",
    "e\u0301": "é",
    "e": "e",
    "½": "1/2",
    "Ⅷ": "VIII",
}
CHARSMAP |= {"a\u0301": "á", "\r": " ", "\u200b": " ", "\u0958": "\u0915\u093c", "é": "é"}


def _unigram(*rules: Any, scheme: str = "always", fallback: bool = False) -> Engine:
    """Unigram: of T5, XLM-R, ALBERT."""
    engine = Engine(models.Unigram())
    engine.normalizer = normalizers.Sequence([*rules, normalizers.Precompiled(charsmap(CHARSMAP))])
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    names = ["<unk>", "[CLS]", "[SEP]", *(BYTES if fallback else [])]
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    trained(engine, trainer, scripts=False)
    if fallback:
        state = json.loads(engine.to_str())
        state["model"]["byte_fallback"] = True
        engine = Engine.from_str(json.dumps(state))
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    engine.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True, normalized=False)])
    return _around(engine, "[CLS]", "$A", "[SEP]")


def _albert() -> Engine:
    quotes = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    return _unigram(*quotes, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase())


def _bert(lowercase: bool = True) -> Engine:
    engine = Engine(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    trained(engine, trainers.WordPieceTrainer(vocab_size=1200, special_tokens=names, show_progress=False))
    engine.decoder = decoders.WordPiece()
    cls, sep = (engine.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    engine.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return engine


def _words(normalizer: Any, split_by: Any, model: str = "WordLevel") -> Engine:
    """Words, or BPE with marks at their beginnings or ends."""
    trainer: Any = trainers.WordLevelTrainer(vocab_size=900, special_tokens=["<unk>"], show_progress=False)
    engine = Engine(models.WordLevel(unk_token="<unk>"))
    if model != "WordLevel":
        how = {"suffix": {"end_of_word_suffix": "</w>"}, "prefix": {"continuing_subword_prefix": "@@"}}[model]
        engine = Engine(models.BPE(unk_token="<unk>", **how))
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"], show_progress=False, **how)
        engine.decoder = (
            decoders.BPEDecoder() if model == "suffix" else decoders.WordPiece("@@", cleanup=False)
        )
    engine.normalizer, engine.pre_tokenizer = normalizer, split_by
    return trained(engine, trainer)


def _qwen3() -> Engine:
    engine = byte_level(split(QWEN2))
    engine.normalizer = normalizers.NFC()
    return engine


MAKERS: dict[str, Callable[[], Engine]] = {
    "gpt2": byte_level,
    "llama3": _llama3,
    "qwen2": lambda: byte_level(split(QWEN2)),
    "o200k": lambda: byte_level(split(O200K)),
    "cl100k": lambda: byte_level(split(CL100K, "removed", invert=True)),
    "roberta": _roberta,
    "deepseek": _deepseek,
    "starcoder": _starcoder,
    "bloom": lambda: byte_level(split(BLOOM)),
    "few bytes": lambda: _few(),
    "qwen3": _qwen3,
    "llama2": _llama2,
    "few pieces": lambda: _llama2(few=True),
    "mistral": lambda: _metaspace("first", False),
    "metaspace": lambda: _metaspace("always", True),
    "gemma": _gemma,
    "t5": _unigram,
    "xlmr": lambda: _unigram(normalizers.Nmt(), normalizers.NFKC(), scheme="first", fallback=True),
    "albert": _albert,
    "bert": _bert,
    "bert cased": lambda: _bert(lowercase=False),
    "words": lambda: _words(normalizers.NFKC(), pre_tokenizers.Whitespace()),
    "suffix": lambda: _words(
        normalizers.Sequence([normalizers.NFD(), normalizers.Replace(Regex(r"\s+"), " ")]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous")]),
        "suffix",
    ),
    "prefix": lambda: _words(
        None,
        pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit(" "), pre_tokenizers.Digits(False)]),
        "prefix",
    ),
}


def _few() -> Engine:
    """Bytes that have no token, and one for those."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:70]
    engine = Engine(
        models.BPE({letter: i for i, letter in enumerate(["<unk>", *letters])}, [], unk_token="<unk>")
    )
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return engine


@cache
def tokenizer(name: str) -> Engine:
    """The tokenizer ``name``."""
    return MAKERS[name]()
