"""Reads a tokenizer.json, and makes it safe to give to the tokenizers library.

The file may come from a stranger, and the library trusts it: a padding of 2³³ tokens or a dozen replacements of one
letter by ten end the process, out of memory. So what makes text grow is limited here, before the library sees it; and
what training left switched on and no prompt wants (truncation, padding, random merges) is switched off.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from ..errors import BundleError, EdgeloopError
from ..wording import reason

MAX_BYTES = 128 << 20
MAX_TOKEN = 1 << 12
MAX_CHARACTERS = 5 << 19
MAX_GROWTH = {"normalizer": 1024, "decoder": 64}
MAX_AROUND = 1024
"""Bytes of a file (the largest known have 35 MB), bytes of a token's name, characters of all names of a kind that takes
much memory (the largest known have 1.8 million), characters that one may become, tokens put around a text."""

OFF = ("truncation", "padding")
NULL = Raw(b"null")
PARTS = ("normalizers", "decoders", "pretokenizers", "processors")


class _Named(msgspec.Struct):
    """An added token, of which only the text is checked."""

    content: str


@dataclass(frozen=True)
class TokenizerFile:
    """``data``: the JSON for the library. ``growth``: characters that a character of a text may become."""

    data: bytes
    growth: float


def read_tokenizer_file(path: Path, kind: type[EdgeloopError] = BundleError) -> TokenizerFile:
    """Return the file at ``path``; an error of ``kind`` names it when it is missing, damaged or too large."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise kind(f"{path} has {size} bytes, at most {MAX_BYTES} are read; it is no tokenizer.json")
        data = path.read_bytes()
    except OSError as error:
        raise kind(f"{path} cannot be read ({reason(error)}); copy it again") from error
    try:
        return bounded(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise kind(f"{path} is not a tokenizer ({reason(error)}); copy it again") from error


def bounded(data: bytes) -> TokenizerFile:
    """Return the same for the bytes of a file; ValueError says what is wrong."""
    parts = msgspec.json.decode(data, type=dict[str, Raw])
    model = _fields(parts.get("model", NULL), "model")
    _check_names(model.get("vocab", NULL))
    _check_names(parts.get("added_tokens", NULL))
    _check_tries(parts, model)
    _check_template(_value(parts, "post_processor"))
    growth = _growth(_value(parts, "normalizer"))
    _check_growth("normalizer", growth)
    _check_growth("decoder", _growth(_value(parts, "decoder")))
    changed = {"dropout": NULL} if "dropout" in model else {}
    parts["model"] = Raw(msgspec.json.encode(model | changed))
    # Encoded again in any case: a key that is there twice would mean one thing here and another to the library.
    return TokenizerFile(msgspec.json.encode(parts | dict.fromkeys(OFF, NULL)), growth)


def _fields(part: Raw, name: str) -> dict[str, Raw]:
    fields = msgspec.json.decode(part, type=dict[str, Raw] | None)
    if fields is None:
        raise ValueError(f"it has no {name}")
    return fields


def _value(parts: dict[str, Raw], name: str) -> Any:
    return msgspec.json.decode(parts.get(name, NULL))


def _check_names(part: Raw) -> None:
    """Raise ValueError for a token that is too long.

    The vocabulary stays text: parsed, one of 250,000 tokens takes 60 MB, and a board has no use for it.
    """
    longest = max(map(len, bytes(part).split(b'"')))
    if longest > MAX_TOKEN:
        raise ValueError(f"a token has {longest} bytes, at most {MAX_TOKEN} are read")


def _check_growth(name: str, growth: float) -> None:
    if growth > MAX_GROWTH[name]:
        raise ValueError(
            f"the {name} makes {growth:.3g} characters of one, at most {MAX_GROWTH[name]} are allowed"
        )


def _check_tries(parts: dict[str, Raw], model: dict[str, Raw]) -> None:
    """Raise ValueError for too many characters: a Unigram's cost the library up to 1 kB each, added tokens' 200
    bytes."""
    vocabulary = model.get("vocab", NULL)
    pieces = 0
    if bytes(vocabulary).lstrip().startswith(b"["):
        pieces = sum(len(piece) for piece, _ in msgspec.json.decode(vocabulary, type=list[tuple[str, float]]))
    tokens = msgspec.json.decode(parts.get("added_tokens", NULL), type=list[_Named] | None)
    added = sum(len(token.content) for token in tokens or ())
    for name, found in (("vocabulary", pieces), ("added tokens", added)):
        if found > MAX_CHARACTERS:
            raise ValueError(f"its {name} have {found} characters, at most {MAX_CHARACTERS} are read")


def _growth(rule: Any) -> float:
    """Return how many times longer a normalizer or decoder can make a text, at most."""
    if isinstance(rule, list):
        return math.prod(_growth(each) for each in rule)
    if not isinstance(rule, dict):
        return 1
    kind, inside = rule.get("type"), [rule[name] for name in PARTS if name in rule]
    if inside:
        return _growth(inside)
    if kind == "Replace":
        pattern, content = rule.get("pattern"), len(str(rule.get("content")))
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression, or no text at all, may match between any two characters.
        return max(1, content / len(plain)) if isinstance(plain, str) and plain else 1 + content
    if kind == "Prepend":
        return 1 + len(str(rule.get("prepend")))
    return _longest_replacement(str(rule.get("precompiled_charsmap"))) if kind == "Precompiled" else 1


def _longest_replacement(charsmap: str) -> int:
    """Return the longest replacement in SentencePiece's table.

    The table is the size of a trie (uint32), the trie, and the replacements, each ended by a zero.
    """
    try:
        table = base64.b64decode(charsmap, validate=True)
    except binascii.Error as error:
        raise ValueError(f"precompiled_charsmap is not base64 ({error})") from error
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or 4 + size > len(table):
        raise ValueError(f"precompiled_charsmap has {len(table)} bytes and a trie of {size}")
    return max(len(text.decode("utf-8", "replace")) for text in table[4 + size :].split(b"\0")) or 1


def _check_template(rule: Any) -> None:
    """Raise ValueError unless a post-processor puts known tokens, not too many, around one text, which it has once."""
    if isinstance(rule, dict) and isinstance(rule.get("processors"), list):
        for each in rule["processors"]:
            _check_template(each)
    if not isinstance(rule, dict) or rule.get("type") != "TemplateProcessing":
        return
    pieces = msgspec.convert(rule.get("single"), list[dict[str, dict[str, Any]]])
    tokens = msgspec.convert(rule.get("special_tokens"), dict[str, dict[str, Any]])
    around, texts = 0, 0
    for kind, piece in (item for each in pieces for item in each.items()):
        name = piece.get("id")
        if kind == "Sequence" and name == "A":
            texts += 1
        elif kind == "SpecialToken" and isinstance(name, str) and name in tokens:
            around += len(msgspec.convert(tokens[name].get("ids"), list[int]))
        else:
            raise ValueError(f"its post_processor names {kind} {name!r}, which does not exist")
    if texts > 1 or around > MAX_AROUND:
        raise ValueError(f"its post_processor writes a text {texts} times and {around} tokens around it")
