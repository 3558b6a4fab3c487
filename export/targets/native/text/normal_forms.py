"""The normal forms of Unicode, as the library makes them: what characters become, the order of marks."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from tokenizers import normalizers

from .....runtime.engines.native.text_format import CODE_POINTS
from .asked import Set, changed, characters

HANGUL = range(0xAC00, 0xAC00 + 11172)
VOWELS, TAILS = range(0x1161, 0x1176), range(0x11A8, 0x11C3)
"""What is composed by rule."""
LAST = "\u0345"
"""The mark behind all others."""


@dataclass(frozen=True)
class NormalForm:
    """``parts``: what characters become, those by rule left out. ``orders``: of marks. ``pairs``: what two characters
    become, where ``parts`` are composed again. ``unstable``: the characters that change, or that others may change."""

    parts: dict[int, str]
    orders: dict[int, int]
    pairs: dict[tuple[int, int], int]
    unstable: Set


@cache
def normal_form(name: str) -> NormalForm:
    """NFC, NFD, NFKC or NFKD."""
    forms = {form: getattr(normalizers, form)().normalize_str for form in ("NFC", "NFD", "NFKC", "NFKD")}
    whole = changed(forms["NFKD" if "K" in name else "NFD"])
    parts = {c: text for c, text in whole.items() if c not in HANGUL}
    orders = _orders(forms["NFD"])
    unstable = np.zeros(CODE_POINTS, bool)
    unstable[list(orders)] = True
    pairs: dict[tuple[int, int], int] = {}
    if name in ("NFD", "NFKD"):
        unstable[list(whole)] = True
        return NormalForm(parts, orders, pairs, unstable)
    unstable[list(changed(forms[name]))] = True
    unstable[[*VOWELS, *TAILS]] = True
    pairs = _pairs(forms["NFC"], forms["NFD"])
    unstable[[second for _, second in pairs]] = True
    return NormalForm(parts, orders, pairs, unstable)


def _lines(texts: list[str], form: Callable[[str], str]) -> list[str]:
    return form("\n".join(texts)).split("\n") if texts else []


@cache
def _orders(form: Callable[[str], str]) -> dict[int, int]:
    """A number for each mark: marks with smaller ones go first, those with equal ones stay as they are."""
    asked = [chr(c) for c in characters() if c not in (10, 13)]
    marks = [
        c for c, line in zip(asked, _lines([LAST + c for c in asked], form), strict=True) if line == c + LAST
    ]
    classes: dict[int, str] = {}
    for mark in [*marks, LAST]:
        classes.setdefault(unicodedata.combining(mark), mark)
    found = {}
    for mark in [*marks, LAST]:
        lines = [other + mark for other in classes.values()]
        found[ord(mark)] = sum(
            line == wanted for line, wanted in zip(_lines(lines, form), lines, strict=True)
        )
    return found


@cache
def _pairs(compose: Callable[[str], str], decompose: Callable[[str], str]) -> dict[tuple[int, int], int]:
    whole = {c: text for c, text in changed(decompose).items() if c not in HANGUL}
    kept = [c for c, line in zip(whole, _lines(list(whole.values()), compose), strict=True) if line == chr(c)]
    firsts = _lines([whole[c][:-1] for c in kept], compose)
    found = {}
    for c, first in zip(kept, firsts, strict=True):
        if len(first) == 1:
            found[ord(first), ord(whole[c][-1])] = c
        else:
            one, two = unicodedata.decomposition(chr(c)).split()
            found[int(one, 16), int(two, 16)] = c
    return found
