"""What the tokenizers library says about characters: which are letters, what each becomes.

The library has several tables of Unicode, of different versions, and none of them is Python's. So it is asked, all
characters at once, and what a section holds is what the library does here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers, pre_tokenizers

from .....runtime.engines.native.text_format import CODE_POINTS
from .....runtime.errors import ExportError

Set = npt.NDArray[np.bool_]
"""[CODE_POINTS]: which are in it."""

EMPTY, PRIVATE = 0x50000, 0xF0000
"""Planes without characters, and those for private use, are asked about once each."""


@cache
def characters() -> npt.NDArray[np.int64]:
    """The characters that are asked about: those of planes that have any, and some of the others."""
    every = np.arange(CODE_POINTS)
    odd = (every & 0xFFFF) >= 0xFFFE
    asked = (every < 0x40000) | (every >> 12 == 0xE0) | odd | (every == EMPTY) | (every == PRIVATE)
    found: npt.NDArray[np.int64] = every[asked & ~((every >= 0xD800) & (every < 0xE000))]
    return found


def spread(asked: Set) -> Set:
    """``asked`` of ``characters()``, for those that were not asked about too."""
    found = np.zeros(CODE_POINTS, bool)
    found[characters()] = asked
    every = np.arange(CODE_POINTS)
    plain = (every & 0xFFFF) < 0xFFFE
    found[(every >= 0x40000) & (every < PRIVATE) & (every >> 12 != 0xE0) & plain] = found[EMPTY]
    found[(every >= PRIVATE) & plain] = found[PRIVATE]
    return found


@cache
def matched(pattern: str) -> Set:
    """The characters that the regular expression ``pattern`` matches by themselves; ExportError for none that there
    is."""
    try:
        rule = normalizers.Replace(Regex(pattern), "")
    except Exception as error:  # of the library: its own kinds
        raise ExportError(
            f"the regular expression {pattern!r} is none that the library reads ({error})"
        ) from error
    asked = characters()
    left = _numbers(rule.normalize_str(_text(asked)))
    gone = np.ones(CODE_POINTS, bool)
    gone[left] = False
    return spread(gone[asked])


@cache
def split_at(kind: str) -> Set:
    """The characters that a pre-tokenizer takes out of a text: of WhitespaceSplit or Punctuation."""
    rule: Any = (
        pre_tokenizers.WhitespaceSplit()
        if kind == "WhitespaceSplit"
        else pre_tokenizers.Punctuation("removed")
    )
    asked = characters()
    gone = np.ones(CODE_POINTS, bool)
    for piece, _ in rule.pre_tokenize_str(_text(asked)):
        gone[_numbers(piece)] = False
    return spread(gone[asked])


@cache
def set_apart(kind: str) -> Set:
    """The characters that stand alone behind a letter: of Digits or BertPreTokenizer."""
    rule: Any = pre_tokenizers.Digits(True) if kind == "Digits" else pre_tokenizers.BertPreTokenizer()
    asked = characters()
    both = np.empty(2 * len(asked), np.int64)
    both[::2], both[1::2] = ord("a"), asked
    apart = np.zeros(len(both), bool)
    for piece, (start, _) in rule.pre_tokenize_str(_text(both)):
        apart[start] = piece != "a"
    return spread(apart[1::2])


def changed(rule: Callable[[str], str], over: npt.NDArray[np.int64] | None = None) -> dict[int, str]:
    """What ``rule`` makes of each character that does not stay as it is; ``over``: of all that there are.

    Characters are asked about in lines, whose ends no rule changes.
    """
    asked = characters() if over is None else over
    asked = asked[(asked != 10) & (asked != 13)]
    lines = np.full(2 * len(asked), 10, np.int64)
    lines[::2] = asked
    made = rule(_text(lines)).split("\n")[:-1]
    if len(made) != len(asked):
        raise ExportError("a normalizer changes where lines end, which the native engine's text does not do")
    return {int(c): text for c, text in zip(asked, made, strict=True) if text != chr(c)}


def _text(numbers: npt.NDArray[np.int64]) -> str:
    return numbers.astype("<u4").tobytes().decode("utf-32-le")


def _numbers(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
