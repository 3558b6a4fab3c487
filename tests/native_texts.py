"""What the native tokenizer is tried on: texts in thirty scripts, and a file with the text section of a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from chat_templates import TEMPLATES
from lanes_files import stored
from programs import PROGRAMS
from tokenizers import Tokenizer as Engine

from edgeloop.export.targets.native.text.section import tokenizer_tables
from edgeloop.export.text.compile_turns import compile_turns
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.records import about_record, turns_record
from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.engines.native.text_format import Tag, section

SCRIPTS = {
    "Latin": (0x41, 0x24F),
    "Greek": (0x370, 0x3FF),
    "Cyrillic": (0x400, 0x52F),
    "Armenian": (0x531, 0x58F),
    "Hebrew": (0x591, 0x5F4),
    "Arabic": (0x600, 0x6FF),
    "Syriac": (0x700, 0x74F),
    "Thaana": (0x780, 0x7B1),
    "Devanagari": (0x900, 0x97F),
    "Bengali": (0x980, 0x9FE),
    "Gurmukhi": (0xA01, 0xA76),
    "Gujarati": (0xA81, 0xAFF),
    "Tamil": (0xB82, 0xBFA),
    "Telugu": (0xC00, 0xC7F),
    "Kannada": (0xC80, 0xCF2),
    "Malayalam": (0xD00, 0xD7F),
    "Sinhala": (0xD81, 0xDF4),
    "Thai": (0xE01, 0xE5B),
    "Lao": (0xE81, 0xEDF),
    "Tibetan": (0xF00, 0xFDA),
    "Myanmar": (0x1000, 0x109F),
    "Georgian": (0x10A0, 0x10FF),
    "Hangul jamo": (0x1100, 0x11FF),
    "Ethiopic": (0x1200, 0x137C),
    "Cherokee": (0x13A0, 0x13FD),
    "Khmer": (0x1780, 0x17F9),
    "Mongolian": (0x1800, 0x18AA),
    "Hiragana and Katakana": (0x3041, 0x30FF),
    "Han": (0x4E00, 0x9FFF),
    "Hangul": (0xAC00, 0xD7A3),
    "Gothic": (0x10330, 0x1034A),
    "Adlam": (0x1E900, 0x1E95F),
}
"""Blocks of letters, marks and digits, from first to last."""
OTHERS = (
    (0x20, 0x7E),  # ASCII
    (0xA0, 0xBF),  # Latin-1's signs
    (0x300, 0x36F),  # marks
    (0x2000, 0x206F),  # spaces and punctuation
    (0x2070, 0x218B),  # numbers, letters as signs
    (0x2460, 0x24FF),  # in circles
    (0x3000, 0x303F),
    (0xFB00, 0xFB4F),  # ligatures
    (0xFDD0, 0xFDFF),
    (0xFE00, 0xFEFF),
    (0xFF01, 0xFFEF),  # of full and half width
    (0x1D400, 0x1D7FF),  # letters of formulas
    (0x1F300, 0x1F6FF),  # pictures
    (0x0, 0x1F),
    (0x7F, 0x9F),
    (0xE000, 0xE0FF),
    (0xE0100, 0xE01EF),
)
MARKS = (
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "'s",
    "'LL",
    "’t",
    ".",
    ", ",
    "...",
    "!?",
    "-",
    "▁",
    "_",
    "1",
)
MARKS += ("2024", "<", ">", "é", "e\u0301")
TEXTS = Path(__file__).parents[1] / "apps" / "demo" / "texts"


def made(count: int, seed: int = 0) -> Iterator[str]:
    """``count`` texts, in every script in turn, with what stands between words and among letters anywhere."""
    dice, scripts = random.Random(seed), list(SCRIPTS.values())
    for number in range(count):
        first, last = scripts[number % len(scripts)]
        parts = []
        for _ in range(dice.choice((1, 2, 5, 9))):
            kind = dice.random()
            if kind < 0.6:
                parts.append("".join(chr(dice.randint(first, last)) for _ in range(dice.randint(1, 8))))
            elif kind < 0.85:
                parts.append(dice.choice(MARKS) * dice.choice((1, 1, 1, 2, 3)))
            else:
                low, high = dice.choice(OTHERS)
                parts.append("".join(chr(dice.randint(low, high)) for _ in range(dice.randint(1, 4))))
        yield "".join(parts)


@cache
def tales(most: int = 400) -> tuple[str, ...]:
    """Paragraphs of the tales that the demo has."""
    found: list[str] = []
    for path in sorted(TEXTS.glob("*.txt")):
        found += path.read_text(encoding="utf-8").split("\n\n")
    return tuple(found[:: max(1, len(found) // most)])


def write_file(folder: Path, engine: Engine | Path, split_special: bool = False) -> Path:
    """A model.lanes file of a small model with the text section of ``engine``, or of a tokenizer.json."""
    source = engine if isinstance(engine, Path) else folder / "tokenizer.json"
    if not isinstance(engine, Path):
        engine.save(str(source))
    program = PROGRAMS["gpt"]()
    text = section(tokenizer_tables(source, split_special))
    write_lanes(folder / NAME, program, *stored(program, "none"), text=text)
    return folder / NAME


def write_text_file(folder: Path, engine: Engine, template: str | None = "chatml") -> Path:
    """A text.lanes of ``engine`` with the turns of ``template``, beside its tokenizer.json."""
    engine.save(str(folder / "tokenizer.json"))
    tables: dict[int, bytes] = {Tag.ABOUT: about_record(PROGRAMS["gpt"](), "", "")}
    if template is not None:
        tables[Tag.TURNS] = turns_record(compile_turns(*TEMPLATES[template]))
    path = folder / "text.lanes"
    path.write_bytes(section(tokenizer_tables(folder / "tokenizer.json", False) | tables))
    return path


def native(folder: Path, engine: Engine | Path, split_special: bool = False) -> NativeText:
    """The native tokenizer of ``engine``."""
    return NativeText(write_file(folder, engine, split_special))
