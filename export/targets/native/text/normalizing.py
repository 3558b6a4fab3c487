"""Normalizers as steps."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from .....runtime.engines.native.text_format import (
    CODE_POINTS,
    COMPOSED,
    MAPPED,
    Kind,
    Stage,
    Tag,
)
from .....runtime.errors import ExportError
from .asked import Set, changed, characters, spread
from .normal_forms import normal_form
from .steps import Steps, flat

Json = Mapping[str, Any]
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
MARK, ACCENT, JOINER = "\u20d0", "\u0301", "\u200d"
LETTER, VIRAMA, SIGN = "\u0915", "\u094d", "\u00a9"
"""A consonant and what links it to the next one; a picture of two bytes."""
PART = "Z"
"""What stands between characters whose lines' ends a normalizer changes: it keeps this letter, and makes none."""


class Normalizing:
    """The normalizers of a tokenizer, and the tables that they need."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._sets = steps, steps.sets
        self._maps: list[tuple[int, int, int]] = []
        self._orders: dict[int, int] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self._charsmap = b""

    def add(self, rule: Json | None) -> None:
        """Add the steps of a normalizer; ExportError names what there is none for."""
        for part in flat(rule, "normalizers"):
            self._one(part)

    def tables(self) -> dict[int, bytes]:
        """What a section has for them."""
        orders = [(c, 0, order) for c, order in sorted(self._orders.items())]
        pairs = [(*pair, made) for pair, made in sorted(self._pairs.items())]
        return {
            Tag.MAPS: np.array(self._maps, MAPPED).tobytes(),
            Tag.REORDER: np.array(orders, MAPPED).tobytes(),
            Tag.COMPOSE: np.array(pairs, COMPOSED).tobytes(),
            Tag.CHARSMAP: self._charsmap,
        }

    def _step(self, kind: Kind, flags: int = 0, **fields: Any) -> None:
        self._steps.add(Stage.NORMALIZE, kind, flags, **fields)

    def _one(self, rule: Json) -> None:
        match rule["type"]:
            case "Lowercase":
                self._lowercase()
            case "Prepend":
                self._step(Kind.PREPEND, a=rule["prepend"])
            case "Strip":
                self._step(Kind.STRIP, int(rule["strip_left"]) + 2 * int(rule["strip_right"]))
            case "Replace":
                self._steps.replace(Stage.NORMALIZE, rule)
            case "StripAccents":
                self._made_of(normalizers.StripAccents().normalize_str)
            case "Nmt":
                self._made_of(normalizers.Nmt().normalize_str, PART)
            case "BertNormalizer":
                self._bert(rule)
            case "Precompiled":
                self._clusters(rule["precompiled_charsmap"])
            case name if name in FORMS:
                self._form(name)
            case name:
                raise ExportError(f"its normalizer is {name}")

    def _mapped(self, parts: Mapping[int, str]) -> dict[str, int]:
        rows = [(c, *self._steps.strings(text)) for c, text in sorted(parts.items())]
        self._maps += rows
        return {"first": len(self._maps) - len(rows), "count": len(rows)}

    def _lowercase(self) -> None:
        parts = changed(normalizers.Lowercase().normalize_str)
        self._step(Kind.MAP, set_=self._sets.number(_set(parts)), **self._mapped(parts))

    def _form(self, name: str) -> None:
        form = normal_form(name)
        self._orders, self._pairs = form.orders, form.pairs or self._pairs
        where = self._mapped(form.parts)
        self._step(Kind.COMPOSED, int(bool(form.pairs)), set_=self._sets.number(form.unstable), **where)

    def _made_of(self, rule: Callable[[str], str], between: str = "\n") -> None:
        """A normalizer that leaves characters out, or makes spaces of them."""
        asked = characters()[(characters() != ord(between)) & (characters() != 13)]
        lines = np.full(2 * len(asked), ord(between))
        lines[::2] = asked
        made = rule(lines.astype("<u4").tobytes().decode("utf-32-le")).split(between)[:-1]
        if len(made) != len(asked):
            raise ExportError(f"a normalizer makes {between!r} of another character, or nothing of it")
        for by in ("", " "):
            found = np.zeros(CODE_POINTS, bool)
            found[[c for c, text in zip(asked, made, strict=True) if text == by and chr(c) != by]] = True
            found[13] = rule("\r") == by
            found = spread(found[characters()])
            if found.any():
                self._step(Kind.REPLACE, pattern=self._steps.one_of(found), b=by)

    def _bert(self, rule: Json) -> None:
        def part(**on: bool) -> Callable[[str], str]:
            off = {
                "clean_text": False,
                "handle_chinese_chars": False,
                "strip_accents": False,
                "lowercase": False,
            }
            found: Callable[[str], str] = normalizers.BertNormalizer(**(off | on)).normalize_str
            return found

        if rule["clean_text"]:
            self._made_of(part(clean_text=True), PART)
        if rule["handle_chinese_chars"]:
            found = spread(_set(changed(part(handle_chinese_chars=True)))[characters()])
            self._step(Kind.REPLACE, 1, pattern=self._steps.one_of(found), b=" ")
        accents = rule.get("strip_accents")
        if rule["lowercase"] if accents is None else accents:
            self._form("NFD")
            self._made_of(part(strip_accents=True))
        if rule["lowercase"]:
            self._lowercase()

    def _clusters(self, charsmap: str | None) -> None:
        try:
            data = base64.b64decode(charsmap or "", validate=True)
        except binascii.Error as error:
            raise ExportError(f"its precompiled_charsmap is not base64 ({error})") from error
        if self._charsmap not in (b"", data):
            raise ExportError("it has two precompiled_charsmaps")
        self._charsmap = data
        joins, alone, opens = _clusters()
        self._step(
            Kind.CLUSTERS,
            1,
            set_=self._sets.number(joins),
            first=self._sets.number(alone),
            count=self._sets.number(opens),
            more=self._sets.row(_joined(opens)),
        )


def _set(parts: Mapping[int, str]) -> Set:
    found = np.zeros(CODE_POINTS, bool)
    found[list(parts)] = True
    return found


def _clusters() -> tuple[Set, Set, Set]:
    """What joins the character before it, what nothing joins, and what joins the character behind it.

    The library is asked with a table that makes X of a: a cluster of less than six bytes that begins with an a is an X.
    """
    asked = characters()[characters() != 10]

    def found(line: Callable[[str], str], is_: Callable[[str, str], bool]) -> Set:
        made = _lines("a", map(line, map(chr, asked)))
        return _chosen(asked, [is_(chr(c), text) for c, text in zip(asked, made, strict=True)])

    joins = found(lambda c: f"a{c}", lambda c, text: text == "X")
    opens = found(lambda c: f"{c}a{MARK}", lambda c, text: text == f"{c}X{MARK}")
    alone = np.zeros(CODE_POINTS, bool)
    for c in characters():
        kind = unicodedata.category(chr(c))
        alone[c] = kind in ("Cc", "Cf", "Zl", "Zp") or (
            kind == "Cn" and (0xE0000 <= c < 0xE1000 or 0xFFF0 <= c < 0xFFF9 or c == 0x2065)
        )
    return joins, alone & ~joins & ~opens, opens


def _joined(opens: Set) -> tuple[Set, ...]:
    """The sets of ``ClusterSet`` in format.h: by what stands between, one letter or picture joins another.

    What is asked for ends with a letter that the table knows and an accent, together five bytes or less: joined to
    what is before them they are more, so that each is looked up by itself and the accent stays. ``opens`` join what
    follows by themselves.
    """
    asked = characters()[characters() != 10]

    def found(key: str, line: Callable[[str], str]) -> Set:
        made = _lines(key, (line(chr(c)) + key + ACCENT for c in asked))
        return _chosen(asked, [text.endswith(f"X{ACCENT}") for text in made])

    consonants = found(LETTER, lambda c: c + VIRAMA)
    linkers = found(LETTER, lambda c: LETTER + c) & ~opens
    linked = found(LETTER, lambda c: LETTER + VIRAMA + c) & ~opens
    pictures = found(SIGN, lambda c: c + JOINER)
    extending = found(SIGN, lambda c: SIGN + c + JOINER) & ~pictures
    return consonants, linkers, linked & ~consonants, pictures, extending


def _lines(key: str, asked: Iterable[str]) -> list[str]:
    """What the library makes of texts without line breaks, by a table that makes X of ``key``."""
    made: str = normalizers.Precompiled(_only(key)).normalize_str("\n".join(asked))
    return made.split("\n")


def _chosen(asked: NDArray[np.int64], chosen: list[bool]) -> Set:
    whole = np.zeros(CODE_POINTS, bool)
    whole[asked[chosen]] = True
    return spread(whole[characters()])


def _only(key: str) -> bytes:
    """SentencePiece's table with X for ``key``: a double array, 256 units for what may follow each byte."""
    data = key.encode()
    units = np.zeros(256 * (len(data) + 3), "<u4")
    units[0] = 256 << 10
    for i, byte in enumerate(data):
        here, there = 256 * (i + 1) ^ byte, 256 * (i + 2)
        units[here] = (here ^ there) << 10 | byte
    units[here] |= 1 << 8
    units[there] = 1 << 31
    return len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + b"X\0"
