"""What a tokenizer does before and behind its model, as steps: normalizers, what splits, decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .....runtime.engines.native.text_format import MAX_STEPS, NONE, STEP, Behavior, Kind, Stage, Tag
from .....runtime.errors import ExportError
from .asked import Set, set_apart, split_at
from .patterns import compiled, literal
from .sets import Sets
from .strings import Strings

Json = Mapping[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Where ByteLevel splits."""
WORDS = r"\w+|[^\w\s]+"
"""What Whitespace leaves."""
TIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What a WordPiece decoder tidies, in this order."""
BEHAVIORS = {
    "Removed": Behavior.REMOVED,
    "Isolated": Behavior.ISOLATED,
    "MergedWithPrevious": Behavior.WITH_PREVIOUS,
    "MergedWithNext": Behavior.WITH_NEXT,
    "Contiguous": Behavior.CONTIGUOUS,
}


class Steps:
    """Steps, and the code of their patterns."""

    def __init__(self, sets: Sets, strings: Strings) -> None:
        self.sets, self.strings = sets, strings
        self._steps: list[tuple[Any, ...]] = []
        self._code: list[int] = []
        self._patterns: dict[str | int, int] = {}

    def add(
        self,
        stage: Stage,
        kind: Kind,
        flags: int = 0,
        pattern: int = NONE,
        a: str = "",
        b: str = "",
        set_: int = 0,
        first: int = 0,
        count: int = 0,
        more: int = 0,
    ) -> None:
        """Add a step."""
        row = (stage, kind, flags, pattern, set_, first, count, more, self.strings(a), self.strings(b))
        self._steps.append(row)
        if len(self._steps) > MAX_STEPS:
            raise ExportError(f"it has more than {MAX_STEPS} rules")

    def pattern(self, regex: str) -> int:
        """Where the code of a regular expression begins."""
        if regex not in self._patterns:
            start = self._patterns[regex] = len(self._code)
            self._code += compiled(regex, self.sets, start)
        return self._patterns[regex]

    def one_of(self, found: Set) -> int:
        """Where the code begins that matches a character of a set."""
        number = self.sets.number(found)
        if number not in self._patterns:
            self._patterns[number] = len(self._code)
            self._code += [1, number, 0]
        return self._patterns[number]

    def tables(self) -> dict[int, bytes]:
        """What a section has of them."""
        return {
            Tag.STEPS: np.array(self._steps, STEP).tobytes(),
            Tag.CODE: np.array(self._code, "<u4").tobytes(),
        }

    # ---- what splits

    def split(self, rule: Json | None) -> bool:
        """Add the steps of a pre-tokenizer; returns whether words are bytes behind it."""
        parts = list(flat(rule, "pretokenizers"))
        for number, part in enumerate(parts):
            if part["type"] == "ByteLevel":
                if number + 1 < len(parts):
                    raise ExportError(f"its pre-tokenizer {parts[number + 1]['type']} follows ByteLevel")
                if part.get("add_prefix_space", True):
                    self.add(Stage.SPLIT, Kind.SPACED)
                if part.get("use_regex", True):
                    self._split_by(self.pattern(GPT2), Behavior.ISOLATED)
                return True
            self._split(part)
        return False

    def _split_by(self, pattern: int, behavior: int, inverted: bool = False) -> None:
        self.add(Stage.SPLIT, Kind.PATTERN, behavior | (Behavior.INVERTED if inverted else 0), pattern)

    def _split(self, rule: Json) -> None:
        match rule["type"]:
            case "Split":
                behavior = _behavior(rule["behavior"])
                self._split_by(self.pattern(regex_of(rule["pattern"])), behavior, bool(rule.get("invert")))
            case "Metaspace":
                mark = str(rule.get("replacement", "▁"))
                scheme = _scheme(rule)
                splits = 4 if rule.get("split", True) else 0
                self.add(
                    Stage.SPLIT, Kind.METASPACE, {"always": 1, "first": 2}.get(scheme, 0) | splits, a=mark
                )
            case "Digits":
                apart = Behavior.ISOLATED if rule.get("individual_digits") else Behavior.CONTIGUOUS
                self._split_by(self.one_of(set_apart("Digits")), apart)
            case "Punctuation":
                self._split_by(
                    self.one_of(split_at("Punctuation")), _behavior(rule.get("behavior", "Isolated"))
                )
            case "WhitespaceSplit":
                self._split_by(self.one_of(split_at("WhitespaceSplit")), Behavior.REMOVED)
            case "Whitespace":
                self._split_by(self.pattern(WORDS), Behavior.REMOVED, True)
            case "BertPreTokenizer":
                self._split_by(self.one_of(split_at("WhitespaceSplit")), Behavior.REMOVED)
                self._split_by(self.one_of(set_apart("BertPreTokenizer")), Behavior.ISOLATED)
            case "CharDelimiterSplit":
                self._split_by(self.pattern(literal(rule["delimiter"])), Behavior.REMOVED)
            case kind:
                raise ExportError(f"its pre-tokenizer is {kind}")

    # ---- decoders

    def decode(self, rule: Json | None, as_bytes: bool) -> None:
        """Add the steps of a decoder."""
        parts = list(flat(rule, "decoders"))
        kinds = [part["type"] for part in parts]
        if (
            as_bytes != ("ByteLevel" in kinds)
            or kinds.count("ByteLevel") > 1
            or (as_bytes and kinds[0] != "ByteLevel")
        ):
            raise ExportError(
                f"its words are {'bytes' if as_bytes else 'text'} and its decoder is {kinds or 'none'}"
            )
        if not parts:
            self.add(Stage.DECODE, Kind.JOINED)
        for part in parts:
            self._decode(part)

    def _decode(self, rule: Json) -> None:
        match rule["type"]:
            case "ByteLevel":
                self.add(Stage.DECODE, Kind.BYTES)
            case "ByteFallback":
                self.add(Stage.DECODE, Kind.FALLBACK)
            case "Fuse":
                self.add(Stage.DECODE, Kind.FUSE)
            case "Metaspace":
                first = _scheme(rule) != "never"
                self.add(Stage.DECODE, Kind.METASPACE, int(first), a=str(rule.get("replacement", "▁")))
            case "Strip":
                ends = int(rule["start"]), int(rule["stop"])
                self.add(Stage.DECODE, Kind.STRIP_TOKEN, a=rule["content"], first=ends[0], count=ends[1])
            case "Replace":
                self.replace(Stage.DECODE, rule)
            case "WordPiece":
                self.add(Stage.DECODE, Kind.WORDPIECES, a=rule.get("prefix", "##"))
                if rule.get("cleanup", True):
                    for what, by in TIDY:
                        self.add(Stage.DECODE, Kind.REPLACE, a=what, b=by)
            case "BPEDecoder":
                suffix = rule.get("suffix", "</w>")
                if not suffix:
                    raise ExportError("its decoder is BPEDecoder without a suffix")
                self.add(Stage.DECODE, Kind.SUFFIX, a=suffix)
            case kind:
                raise ExportError(f"its decoder is {kind}")

    # ---- of both

    def replace(self, stage: Stage, rule: Json) -> None:
        """Add a Replace, of a normalizer or decoder."""
        text = rule["pattern"].get("String")
        if text is None:
            self.add(stage, Kind.REPLACE, pattern=self.pattern(rule["pattern"]["Regex"]), b=rule["content"])
        elif text:
            self.add(stage, Kind.REPLACE, a=text, b=rule["content"])
        else:
            raise ExportError("it replaces no characters at all by some")


def flat(rule: Json | None, inside: str) -> Iterator[Json]:
    """The rules that ``rule`` consists of, one after the other; none of None."""
    if rule is None:
        return
    if rule["type"] != "Sequence":
        yield rule
        return
    for part in rule[inside]:
        yield from flat(part, inside)


def regex_of(pattern: Json) -> str:
    """A regular expression for a pattern of a file: one, or a text."""
    return str(pattern["Regex"]) if "Regex" in pattern else literal(pattern["String"])


def _behavior(name: str) -> Behavior:
    if name not in BEHAVIORS:
        raise ExportError(f"it splits by the behavior {name}")
    return BEHAVIORS[name]


def _scheme(rule: Json) -> str:
    """When Metaspace puts a space before a text; older files say it otherwise."""
    if "prepend_scheme" in rule:
        return str(rule["prepend_scheme"])
    return "always" if rule.get("add_prefix_space", True) else "never"
