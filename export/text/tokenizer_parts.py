"""The parts of a tokenizer.json that the classes of ``rebuilt.py`` build: any host that reads them does the same.

There is a function for each class: from the switches of tokenizer_config.json and the folder's own tokenizer.json to
the parts that the class builds. A part that is absent does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .named_tokens import Settings

Json = dict[str, Any]

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN3_5 = _ENGLISH + (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bpe(**changes: object) -> Json:
    empty = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    return {
        "type": "BPE",
        **empty,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **changes,
    }


def _unigram(unknown: int) -> Json:
    return {"type": "Unigram", "unk_id": unknown, "byte_fallback": False}


def _byte_level(prefix: bool | None, use_regex: bool = True, trim: bool = True) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": bool(prefix),
        "trim_offsets": trim,
        "use_regex": use_regex,
    }


def _metaspace(scheme: str, split: bool = True) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _in_turn(kind: str, rules: list[Json]) -> Json:
    return {"type": "Sequence", kind: rules}


BYTES = _byte_level(True)
PIECES = [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
NFC = {"type": "NFC"}
SPM_WORDS = {"type": "WhitespaceSplit"}
GPT2_MODEL = _bpe(continuing_subword_prefix="", end_of_word_suffix="")


def gpt2(s: Settings, file: Json) -> Json:
    """Return the parts of GPT-2's class: a ByteLevel pre-tokenizer and decoder."""
    prefix = s.flag("add_prefix_space", False)
    return {"model": GPT2_MODEL, "pre_tokenizer": _byte_level(prefix), "decoder": BYTES}


def neox(s: Settings, file: Json) -> Json:
    """Return the parts of GPT-NeoX's class."""
    words = _byte_level(s.flag("add_prefix_space", False), trim=bool(s.flag("trim_offsets", True)))
    return {"model": GPT2_MODEL, "normalizer": NFC, "pre_tokenizer": words, "decoder": BYTES}


def qwen(pattern: str) -> Callable[[Settings, Json], Json]:
    """Return the maker of the parts of a Qwen class, which splits by ``pattern``."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def parts(s: Settings, file: Json) -> Json:
        words = [split, _byte_level(s.flag("add_prefix_space", False), use_regex=False)]
        return {
            "model": GPT2_MODEL,
            "normalizer": NFC,
            "pre_tokenizer": _in_turn("pretokenizers", words),
            "decoder": BYTES,
        }

    return parts


def llama(s: Settings, file: Json) -> Json:
    """Return the parts of Llama's class."""
    prefix = s.flag("add_prefix_space", True) is not False
    scheme = ("always" if s.flag("legacy", False) else "first") if prefix else "never"
    return {
        "model": _bpe(fuse_unk=True, byte_fallback=True),
        "pre_tokenizer": _metaspace(scheme, split=False),
        "decoder": _in_turn("decoders", [*PIECES, STRIP] if prefix else PIECES),
    }


def code_llama(s: Settings, file: Json) -> Json:
    """Return the parts of Code Llama's class."""
    prefix = s.flag("add_prefix_space", True) is not False
    return {
        "model": _bpe(fuse_unk=True, byte_fallback=True, unk_token=_unknown(s, "<unk>")),
        "pre_tokenizer": _metaspace("first" if prefix else "never", split=False),
        "decoder": _in_turn("decoders", [*PIECES, STRIP]),
    }


def gemma(s: Settings, file: Json) -> Json:
    """Return the parts of Gemma's class."""
    spaces = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    return {
        "model": _bpe(fuse_unk=True, byte_fallback=True, unk_token=_unknown(s, "<unk>")),
        "normalizer": _replace(" ", "▁"),
        "pre_tokenizer": spaces,
        "decoder": _in_turn("decoders", PIECES),
    }


def cohere(s: Settings, file: Json) -> Json:
    """Return the parts of Cohere's class."""
    prefix = s.flag("add_prefix_space", False)
    words = [{"type": "Digits", "individual_digits": True}, _byte_level(prefix)]
    return {
        "model": GPT2_MODEL,
        "normalizer": NFC,
        "pre_tokenizer": _in_turn("pretokenizers", words),
        "decoder": _byte_level(prefix),
    }


def t5(s: Settings, file: Json) -> Json:
    """Return the parts of T5's class."""
    return _spm(2, "always", file)


def xlm_roberta(s: Settings, file: Json) -> Json:
    """Return the parts of XLM-RoBERTa's class."""
    return _spm(3, "always" if s.flag("add_prefix_space", True) else "never", file)


def albert(s: Settings, file: Json) -> Json:
    """Return the parts of ALBERT's class."""
    rules = [_replace("``", '"'), _replace("''", '"')]
    if not s.flag("keep_accents", False):
        rules += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if s.flag("do_lower_case", True):
        rules.append({"type": "Lowercase"})
    found = _spm(1, "always" if s.flag("add_prefix_space", True) else "never", file)
    if found["normalizer"]:
        rules.append(found["normalizer"])
    return found | {"normalizer": _in_turn("normalizers", rules)}


def bert(s: Settings, file: Json) -> Json:
    """Return the parts of BERT's class."""
    return {
        "model": {
            "type": "WordPiece",
            "unk_token": _unknown(s, "[UNK]"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(s.flag("tokenize_chinese_chars", True)),
            "strip_accents": s.flag("strip_accents", None),
            "lowercase": bool(s.flag("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }


def _spm(unknown: int, scheme: str, file: Json) -> Json:
    """Return SentencePiece's Unigram: the table of characters is the file's, wherever in the normalizer it is first."""
    normalizer = file.get("normalizer") or {}
    rules = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    tables = [r for r in rules or [] if isinstance(r, dict) and r.get("type") == "Precompiled"]
    return {
        "model": _unigram(unknown),
        "normalizer": tables[0] if tables else None,
        "pre_tokenizer": _in_turn("pretokenizers", [SPM_WORDS, _metaspace(scheme)]),
        "decoder": _metaspace(scheme),
    }


def _unknown(s: Settings, default: str) -> str:
    """Return the unknown token as the class writes it into its model: Python's None where it is null."""
    value = s.options.get("unk_token", default)
    return str(value.get("content") if isinstance(value, dict) else value)
