"""Small tokenizers of every kind that the native one reads, with the rules of real models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from native_texts import made, tales
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
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


def trained(engine: Engine, trainer: Any) -> Engine:
    """``engine``, trained on some of the texts that it is tried on."""
    engine.train_from_iterator([*tales(120), *made(400, 5)], trainer)
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
