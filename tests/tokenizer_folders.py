"""Tiny tokenizers of the kinds that checkpoints have, folders of them, and what holds them against transformers.

``MADE`` makes one for each class that builds parts of tokenizer.json anew; ``write`` a folder by hand; ``agree``
compares what would ship, read by the tokenizers library alone, with AutoTokenizer for the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from edgeloop.export.text.vocabulary import Vocabulary, read_vocabulary

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
PADDING = {
    "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
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


def token(text: str, number: int | None = None, **flags: bool) -> dict[str, Any]:
    found = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False) | flags
    return {"content": text, **found} | ({} if number is None else {"id": number})


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
