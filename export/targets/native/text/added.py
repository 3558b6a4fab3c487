"""Added tokens as tables: what is found in a text as it is written, and what tokens a text is put between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .....runtime.engines.native.text_format import ADDED, CODE_POINTS, AddedFlag, Tag
from .....runtime.errors import ExportError
from .asked import Set, characters, split_at, spread
from .hashed import slots
from .sets import Sets
from .steps import flat
from .strings import Strings

Json = Mapping[str, Any]
FLAGS = {"normalized": AddedFlag.NORMALIZED, "single_word": AddedFlag.SINGLE_WORD}
FLAGS |= {"lstrip": AddedFlag.LEFT, "rstrip": AddedFlag.RIGHT}


def added_tables(
    engine: Any, written: Callable[[str], bytes], sets: Sets, strings: Strings, rules: dict[str, Any]
) -> dict[int, bytes]:
    """The tables of the added tokens of ``engine``, the library's tokenizer, and in ``rules`` what they are.

    ``written``: what decoders get of a token's text.
    """
    tokens = sorted(engine.get_added_tokens_decoder().items())
    special = {token.content for _, token in tokens if token.special}
    rows, texts = [], []
    for number, token in tokens:
        # As the library finds it, and hands it to decoders, where it is normalized.
        name = engine.id_to_token(number)
        flags = sum(int(flag) for field, flag in FLAGS.items() if getattr(token, field))
        flags |= int(AddedFlag.SPECIAL) if name in special else 0
        text = name if token.normalized else token.content
        if not text:
            raise ExportError(f"its added token {token.content!r} is normalized to nothing")
        texts.append(text.encode())
        rows.append((number, flags, strings(texts[-1]), strings(written(name))))
    table, where = slots(texts, range(len(texts)))
    rules |= {"added": (where.homes, where.probes), "longest_added": max(map(len, texts), default=0)}
    rules["space"] = sets.number(split_at("WhitespaceSplit"))
    if any(token.single_word for _, token in tokens):
        rules["word"] = sets.number(word_characters())
    return {Tag.ADDED: np.array(rows, ADDED).tobytes(), Tag.ADDED_SLOTS: table}


def word_characters() -> Set:
    """The characters beside which a token is no single word, as the library sees them."""
    from tokenizers import AddedToken, Tokenizer, models

    engine = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    engine.add_tokens(
        [AddedToken("\n", normalized=False), AddedToken("ab", single_word=True, normalized=False)]
    )
    asked = characters()[characters() != 10]
    lines = np.empty((len(asked), 4), np.int64)
    lines[:] = [0, ord("a"), ord("b"), 10]
    lines[:, 0] = asked
    text = lines.reshape(-1).astype("<u4").tobytes().decode("utf-32-le")
    alone = np.zeros(len(text), bool)
    found = engine.encode(text)
    for token, (start, _) in zip(found.ids, found.offsets, strict=True):
        alone[start] = token == engine.token_to_id("ab")
    word = np.zeros(CODE_POINTS, bool)
    word[asked] = ~alone[1::4]
    return spread(word[characters()])


def around(rule: Json | None) -> dict[int, bytes]:
    """The tokens before and behind a text, as a post-processor has them."""
    before: list[int] = []
    behind: list[int] = []
    for part in flat(rule, "processors"):
        match part["type"]:
            case "ByteLevel":
                pass
            case "TemplateProcessing":
                first, last = _template(part)
                before, behind = first + before, behind + last
            case "BertProcessing" | "RobertaProcessing":
                before, behind = [part["cls"][1], *before], [*behind, part["sep"][1]]
            case kind:
                raise ExportError(f"its post-processor is {kind}")
    return {Tag.BEFORE: _ids(before), Tag.AFTER: _ids(behind)}


def _template(rule: Json) -> tuple[list[int], list[int]]:
    found: tuple[list[int], list[int]] = [], []
    side = 0
    for item in rule["single"]:
        if "Sequence" in item:
            side += 1
        else:
            found[min(side, 1)].extend(rule["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    if side != 1:
        raise ExportError(f"its post-processor writes a text {side} times")
    return found


def _ids(ids: list[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()
