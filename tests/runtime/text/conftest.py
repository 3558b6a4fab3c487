"""Small tokenizers of every kind of decoder that people's checkpoints have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

WORDS = [*"abcdefloopstx", "loop", "lo", "op", "st", "stop", "pper", "é", ".", ",", "'", "n"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _pieces(*parts: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(dict.fromkeys(sum(parts, ["<unk>"])))}


def _sentencepiece(*after: object, few: bool = False) -> Engine:
    """Llama's (Strip) or Gemma's (nothing after) decoder over pieces with ▁ and bytes."""
    told = [f"<0x{byte:02X}>" for byte in (0x0A, 0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF)] if few else BYTES
    vocab = _pieces(
        ["<s>", "</s>"], told, ["▁", *WORDS, *(f"▁{word}" for word in WORDS), "abcdef", "▁abcdef"]
    )
    engine = Engine(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    engine.decoder = decoders.Sequence(parts)
    return engine


def _unigram() -> Engine:
    """T5's and XLM-R's: Metaspace."""
    pieces = list(_pieces(["▁", *WORDS, *(f"▁{word}" for word in WORDS), "abcdef"]))
    engine = Engine(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    return engine


def _wordpiece() -> Engine:
    """BERT's: ## goes on with a word, and the space before a full stop is cleaned up."""
    vocab = _pieces([*WORDS, *(f"##{word}" for word in WORDS), "abcdef", "n't"])
    engine = Engine(models.WordPiece(vocab, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return engine


def _suffixes() -> Engine:
    """The first BPE's: </w> ends a word."""
    vocab = _pieces(["abcdef", *WORDS, *(f"{word}</w>" for word in WORDS)])
    engine = Engine(models.BPE(vocab, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.decoder = decoders.BPEDecoder(suffix="</w>")
    return engine


MAKERS: dict[str, Callable[[], Engine]] = {
    "llama": lambda: _sentencepiece(decoders.Strip(" ", 1, 0)),
    "llama-few-bytes": lambda: _sentencepiece(decoders.Strip(" ", 1, 0), few=True),
    "gemma": _sentencepiece,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "suffixes": _suffixes,
}


@pytest.fixture(scope="session", params=["byte-level", *MAKERS])
def kind(request: pytest.FixtureRequest, byte_level: Engine) -> Engine:
    """A tokenizer of each kind, with special tokens and one that is added but not special."""
    engine = (
        Engine.from_str(byte_level.to_str()) if request.param == "byte-level" else MAKERS[request.param]()
    )
    engine.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_end|>", "<|a b|>")])
    engine.add_tokens(["<added>"])
    return engine
