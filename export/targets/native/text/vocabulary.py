"""The model of a tokenizer as tables: its tokens, and how words become them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .....runtime.engines.native.text_format import (
    MAX_PIECE,
    MAX_TOKENS,
    NONE,
    Flag,
    ModelKind,
    Tag,
)
from .....runtime.errors import ExportError
from .....runtime.text.pieces import BYTE_LEVEL
from .hashed import pair_hashes, places, slots
from .strings import Strings

Json = Mapping[str, Any]
MODELS = {"BPE": ModelKind.BPE, "Unigram": ModelKind.UNIGRAM}
MODELS |= {"WordPiece": ModelKind.WORDPIECE, "WordLevel": ModelKind.WORDLEVEL}


def raw(text: str) -> bytes | None:
    """The bytes that ``text`` stands for, which is written as byte-level vocabularies are; None where it is not."""
    values = [BYTE_LEVEL.get(character) for character in text]
    return None if None in values else bytes(value for value in values if value is not None)


def model_tables(model: Json, as_bytes: bool, strings: Strings, rules: dict[str, Any]) -> dict[int, bytes]:
    """The tables of ``model``, and in ``rules`` what they are; ``as_bytes``: words are bytes.

    ExportError names what the native engine's text does not do.
    """
    kind = model.get("type") or _kind(model)
    if kind not in MODELS:
        raise ExportError(f"its model is of the kind {kind}")
    names, vocab = _names(model)
    size = len(names)
    if size > MAX_TOKENS:
        raise ExportError(f"it has a token {size - 1}, wanted {MAX_TOKENS - 1} at most")
    bare = [None if name is None else raw(name) if as_bytes else name.encode() for name in names]
    pieces = [
        piece if piece is not None else (name or "").encode() for piece, name in zip(bare, names, strict=True)
    ]
    known = [token for token, piece in enumerate(bare) if piece and vocab[names[token] or ""] == token]
    longest = max(map(len, pieces), default=0)
    if longest > MAX_PIECE:
        raise ExportError(f"a token has {longest} bytes, wanted {MAX_PIECE} at most")
    table, where = slots([pieces[token] for token in known], known)
    rules |= {
        "tokens": size,
        "longest": longest,
        "slots": (where.homes, where.probes),
        "model": MODELS[kind],
        "unknown": _token(model.get("unk_token"), vocab, kind),
    }
    found: dict[int, bytes] = {
        Tag.PIECE_ENDS: np.cumsum([len(piece) for piece in pieces]).astype("<u4").tobytes(),
        Tag.PIECES: b"".join(pieces),
        Tag.SLOTS: table,
    }
    match MODELS[kind]:
        case ModelKind.BPE:
            return found | _bpe(model, as_bytes, strings, rules, vocab)
        case ModelKind.UNIGRAM:
            found |= _unigram(model, rules, vocab)
        case ModelKind.WORDPIECE:
            rules["prefix"] = strings(model.get("continuing_subword_prefix", "##"))
            rules["most_characters"] = model.get("max_input_chars_per_word", 100)
    if as_bytes:
        raise ExportError(f"its words are bytes and its model is of the kind {kind}")
    rules.setdefault("flags", 0)
    return found


def _names(model: Json) -> tuple[list[str | None], dict[str, int]]:
    """The names of tokens by id, and ids by name: of two tokens of one name the later one."""
    found = model["vocab"]
    if isinstance(found, list):
        listed = [str(name) for name, _ in found]
        return list(listed), {name: token for token, name in enumerate(listed)}
    names: list[str | None] = [None] * (max(found.values(), default=-1) + 1)
    for name, token in found.items():
        names[token] = name
    return names, dict(found)


def _kind(model: Json) -> str:
    """Of a file that does not say it."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _token(name: str | None, vocab: Mapping[str, int], kind: str) -> int:
    if name is None:
        return NONE
    if name not in vocab:
        if kind != "BPE":  # without one, a text that wants it is refused
            return NONE
        raise ExportError(f"its unknown token {name!r} is not in the vocabulary")
    return vocab[name]


def _byte_names(vocab: Mapping[str, int]) -> list[int]:
    return [vocab.get(f"<0x{byte:02X}>", NONE) for byte in range(256)]


def _unigram(model: Json, rules: dict[str, Any], vocab: Mapping[str, int]) -> dict[int, bytes]:
    scores = np.array([score for _, score in model["vocab"]], "<f8")
    rules["unknown"] = NONE if model.get("unk_id") is None else model["unk_id"]
    rules["unknown_score"] = scores.min(initial=np.inf) - 10
    rules["flags"] = int(Flag.BYTE_FALLBACK) if model.get("byte_fallback") else 0
    found: dict[int, bytes] = {Tag.SCORES: scores.tobytes()}
    if model.get("byte_fallback"):
        found[Tag.BYTE_TOKENS] = np.array(_byte_names(vocab), "<u4").tobytes()
    return found


def _bpe(
    model: Json, as_bytes: bool, strings: Strings, rules: dict[str, Any], vocab: Mapping[str, int]
) -> dict[int, bytes]:
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    flags = {Flag.RAW_BYTES: as_bytes, Flag.BYTE_FALLBACK: model.get("byte_fallback")}
    flags |= {Flag.FUSE_UNKNOWN: model.get("fuse_unk"), Flag.IGNORE_MERGES: model.get("ignore_merges")}
    rules |= {"prefix": strings(prefix), "suffix": strings(suffix)}
    rules["flags"] = sum(flag for flag, on in flags.items() if on)
    if as_bytes and (prefix or suffix):
        raise ExportError("it marks the beginnings or ends of words that are bytes")
    if as_bytes:
        letters = {value: letter for letter, value in BYTE_LEVEL.items()}
        tokens = [vocab.get(letters[byte], NONE) for byte in range(256)]
        if NONE in tokens and model.get("byte_fallback"):
            raise ExportError("it falls back to bytes of letters that stand for bytes")
    else:
        tokens = _byte_names(vocab)
    found: dict[int, bytes] = {}
    if as_bytes or model.get("byte_fallback"):
        found[Tag.BYTE_TOKENS] = np.array(tokens, "<u4").tobytes()
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(pairs):
        made = left + (right[len(prefix) :] if prefix else right)
        try:
            ranks[vocab[left], vocab[right]] = rank, vocab[made]
        except KeyError as error:
            raise ExportError(f"it merges {left!r} and {right!r}, and has no token {error}") from error
    found[Tag.MERGES], rules["merges"] = _merges(ranks)
    return found


def _merges(ranks: Mapping[tuple[int, int], tuple[int, int]]) -> tuple[bytes, tuple[int, int]]:
    """The table of pairs, and its homes and probes."""
    if not ranks:
        return b"", (0, 0)
    rows = np.array([(*pair, *made) for pair, made in ranks.items()], np.uint64)
    left, right, rank, made = rows.T
    where = places(pair_hashes(left, right))
    table = np.full((where.size, 3), NONE, np.uint32)
    words = np.stack(
        [
            left | (right & np.uint64(0xFF)) << np.uint64(24),
            right >> np.uint64(8) | (rank & np.uint64(0xFFFF)) << np.uint64(16),
            rank >> np.uint64(16) | made << np.uint64(8),
        ],
        axis=1,
    )
    table[where.at] = words.astype(np.uint32)
    return table.astype("<u4").tobytes(), (where.homes, where.probes)
