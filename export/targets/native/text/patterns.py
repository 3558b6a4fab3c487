"""Regular expressions, in the syntax that tokenizer files are written in (Oniguruma's), as code of src/text/format.h.

What matches one character — a class, a property, a letter of either case — is not read here: the library is asked which
characters it matches. The rest is read: sequences, alternatives, groups, how often, what is ahead or behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from .....runtime.engines.native.text_format import NONE, Code
from .....runtime.errors import ExportError
from .asked import matched
from .sets import Sets

CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
CLASSES = "sSdDwWhH"
MOST_TIMES = 1000
MOST_WORDS = 1 << 16


@dataclass(frozen=True)
class One:
    """A character of a set."""

    set: int


@dataclass(frozen=True)
class All:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Any:
    """The first that leads to a match."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Times:
    """As often as can be; ``possessive``: and never less."""

    part: Node
    least: int
    most: int | None
    possessive: bool


@dataclass(frozen=True)
class Look:
    """What is, or is not, ahead or behind."""

    part: Node
    ahead: bool
    negated: bool


Node = One | All | Any | Times | Look


def compiled(pattern: str, sets: Sets, start: int) -> list[int]:
    """The words of ``pattern``, which lie at the address ``start``; ExportError for what there is no code for."""
    node = _Reader(pattern, sets).read()
    if _shortest(node) == 0:
        raise ExportError(
            f"the regular expression {pattern!r} matches no characters at all, which has no code"
        )
    words = [*_code(node, start), Code.MATCH]
    if len(words) > MOST_WORDS:
        raise ExportError(
            f"the regular expression {pattern!r} has {len(words)} words of code, wanted {MOST_WORDS}"
        )
    return words


def literal(text: str) -> str:
    """A regular expression that matches ``text``."""
    return re.escape(text)


def _shortest(node: Node) -> int:
    match node:
        case One():
            return 1
        case All(parts):
            return sum(map(_shortest, parts))
        case Any(parts):
            return min(map(_shortest, parts))
        case Times(part, least):
            return least * _shortest(part)
    return 0


def _code(node: Node, at: int) -> list[int]:
    match node:
        case One(number):
            return [Code.SET, number]
        case All(parts):
            words: list[int] = []
            for part in parts:
                words += _code(part, at + len(words))
            return words
        case Any(parts):
            return _either(parts, at)
        case Times(One(number), least, most, possessive):
            return [Code.ALL if possessive else Code.SPAN, number, least, NONE if most is None else most]
        case Times(part, least, most, _):
            return _times(part, least, most, at)
        case Look(part, True, negated):
            body = _code(part, at + 3)
            return [Code.AHEAD, int(negated), at + 3 + len(body) + 1, *body, Code.MATCH]
        case Look(One(number), False, negated):
            return [Code.BEHIND, int(negated), number]
    raise ExportError("a regular expression looks behind for more than a character, which has no code")


def _either(parts: tuple[Node, ...], at: int) -> list[int]:
    if len(parts) == 1:
        return _code(parts[0], at)
    first = _code(parts[0], at + 3)
    other = at + 3 + len(first) + 2
    rest = _either(parts[1:], other)
    return [Code.EITHER, at + 3, other, *first, Code.GO, other + len(rest), *rest]


def _times(part: Node, least: int, most: int | None, at: int) -> list[int]:
    words: list[int] = []
    for _ in range(least):
        words += _code(part, at + len(words))
    if most is None:
        if _shortest(part) == 0:
            raise ExportError("a regular expression repeats what may be nothing, which has no code")
        here = at + len(words)
        body = _code(part, here + 3)
        return [*words, Code.EITHER, here + 3, here + 3 + len(body) + 2, *body, Code.GO, here]
    size = len(_code(part, 0)) + 3
    end = at + len(words) + size * (most - least)
    for _ in range(most - least):
        here = at + len(words)
        words += [Code.EITHER, here + 3, end, *_code(part, here + 3)]
    return words


class _Reader:
    """Reads a regular expression from left to right."""

    def __init__(self, pattern: str, sets: Sets) -> None:
        self._text, self._sets, self._at, self._either_case = pattern, sets, 0, False

    def read(self) -> Node:
        node = self._alternatives()
        if self._at < len(self._text):
            raise self._refused("a ) that closes nothing")
        return node

    def _refused(self, what: str) -> ExportError:
        return ExportError(f"the regular expression {self._text!r} has {what}, which has no code")

    def _next(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _alternatives(self) -> Node:
        parts = [self._sequence()]
        while self._next("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        letters = ""
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            before = self._at
            part = self._times(self._atom())
            plain = self._text[before : self._at]
            letters = letters + plain if self._either_case and len(plain) == 1 else ""
            if any(letters.casefold()[-size:] in _folds() for size in (2, 3) if len(letters) >= size):
                raise self._refused(f"letters {letters!r} of either case that may be one letter")
            parts.append(part)
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _times(self, part: Node) -> Node:
        found = re.compile(r"[?*+]|\{(\d+)(,?)(\d*)\}").match(self._text, self._at)
        if not found:
            return part
        self._at = found.end()
        sign = found[0]
        least, most = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(sign, (0, None))
        if sign[0] == "{":
            least = int(found[1])
            most = (int(found[3]) if found[3] else None) if found[2] else least
        if (
            isinstance(part, Look)
            or max(least, most or 0) > MOST_TIMES
            or (most is not None and most < least)
        ):
            raise self._refused(f"{sign} where it has no meaning")
        if self._next("?"):
            raise self._refused("as little as can be (?)")
        possessive = sign[0] != "{" and self._next("+")
        if possessive and not isinstance(part, One):
            raise self._refused("+ behind a group and its count")
        if self._text[self._at : self._at + 1] in ("*", "+", "{"):
            raise self._refused("a count behind a count")
        return Times(part, least, most, possessive)

    def _atom(self) -> Node:
        start = self._at
        character = self._text[start]
        self._at += 1
        if character == "(":
            return self._group()
        if character == "[":
            return self._class(start)
        if character == "\\":
            return self._escape(start)
        if character == "^":
            return Look(self._asked("[^\\n]"), False, True)
        if character == "$":
            return Look(self._asked("[^\\n]"), True, True)
        if character in "?*+{":
            raise self._refused(f"{character} behind nothing")
        return self._asked(".") if character == "." else self._letter(character)

    def _group(self) -> Node:
        outer = self._either_case
        look: tuple[bool, bool] | None = None
        for opening, found in (
            ("?=", (True, False)),
            ("?!", (True, True)),
            ("?<=", (False, False)),
            ("?<!", (False, True)),
        ):
            if self._next(opening):
                look = found
                break
        else:
            if self._next("?i:"):
                self._either_case = True
            elif not self._next("?:") and self._text.startswith("?", self._at):
                raise self._refused(f"({self._text[self._at : self._at + 3]}")
        node = self._alternatives()
        if not self._next(")"):
            raise self._refused("a ( that is not closed")
        self._either_case = outer
        return Look(node, *look) if look else node

    def _class(self, start: int) -> Node:
        depth = 1
        self._at += self._text.startswith("^", self._at)
        self._at += self._text.startswith("]", self._at)
        while depth:
            if self._at >= len(self._text):
                raise self._refused("a [ that is not closed")
            character = self._text[self._at]
            self._at += 2 if character == "\\" else 1
            depth += (character == "[") - (character == "]")
        return self._asked(self._text[start : self._at])

    def _escape(self, start: int) -> Node:
        found = re.compile(
            r"[pP]\{[^}]*\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.", re.DOTALL
        ).match(self._text, self._at)
        if not found:
            raise self._refused("a \\ at its end")
        self._at = found.end()
        name = found[0]
        if len(name) > 1 and name[0] in "xu":
            return self._letter(chr(int(name[1:].strip("{}"), 16)))
        if name in CONTROLS:
            return self._letter(CONTROLS[name])
        if len(name) > 1 or name in CLASSES:
            return self._asked(self._text[start : self._at])
        if name.isalnum():
            raise self._refused(f"\\{name}")
        return self._letter(name)

    def _letter(self, character: str) -> One:
        if self._either_case and character.isalpha():
            return self._asked(re.escape(character))
        return One(self._sets.of(character))

    def _asked(self, one: str) -> One:
        return One(self._sets.number(matched(f"(?i:{one})" if self._either_case else one)))


@cache
def _folds() -> frozenset[str]:
    """Letters that are, of either case, one letter; all such letters are below U+10000."""
    folds = {fold for c in range(0x80, 0xD800) if len(fold := chr(c).casefold()) > 1}
    folds |= {fold for c in range(0xF900, 0x10000) if len(fold := chr(c).casefold()) > 1}
    return frozenset(
        fold[at : at + size] for fold in folds for size in (2, 3) for at in range(len(fold) - size + 1)
    )
