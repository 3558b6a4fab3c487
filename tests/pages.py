"""What the pages of this project hold: blocks of code, the commands in them, what is said to come out, and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "apps").rglob("*.md")} - {README}),
]
COMMANDS, PYTHON, OUTPUT = ("sh", "console"), "python", "text"
"""The languages of blocks that are run, and of what is held against what was written."""

FENCE = re.compile(r"(?ms)^( *)```([^\n`]*)\n(.*?)^\1```$")
INLINE = re.compile(r"`(edgeloop [a-z]+[^`]*)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(
    r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?(?: ?(?:%|×|[num]?s|µs|[kMG]?B|[kMG])(?!\w))?|(?<= )–(?= |$)"
)


@dataclass(frozen=True)
class Block:
    """A block of code: its language and its text."""

    language: str
    text: str


def name_of(page: Path) -> str:
    """The path of ``page`` in the checkout."""
    return page.relative_to(ROOT).as_posix()


def all_blocks(page: Path) -> list[Block]:
    """The blocks of ``page``, in their order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text) for _, language, text in found]


def blocks(page: Path, *languages: str) -> list[str]:
    """The texts of those in one of ``languages``."""
    return [block.text for block in all_blocks(page) if block.language in languages]


def commands(text: str) -> Iterator[str]:
    """The commands of a block's text, one after the other, without comments: those of a line are apart by && or ;."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=False, punctuation_chars="&;")
        lexer.whitespace_split = True
        for word in lexer:
            if set(word) <= set("&;"):
                yield " ".join(words)
                words = []
            else:
                words.append(word)
        if words:
            yield " ".join(words)


def page_commands(page: Path) -> list[str]:
    """All commands of ``page``."""
    return [command for text in blocks(page, *COMMANDS) for command in commands(text)]


def inline_commands(page: Path) -> list[str]:
    """The commands within sentences and tables of ``page``, which are often cut short."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in INLINE.findall(text)]


def shape(text: str) -> str:
    """``text`` with every number as #, with its unit, and one space wherever there are any."""
    return " ".join(NUMBER.sub("#", text).replace("\\|", "|").split())


def anchors(page: Path) -> set[str]:
    """The names that headings have on the web: small letters, no punctuation, dashes for spaces."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def page_table(page: str, heading: str) -> dict[str, list[str]]:
    """The tables under a heading of docs/PAGE.md: by every `name` in a row's first cell, its other cells."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {name: row[1:] for row in cells[1:] for name in re.findall(r"`(.+?)`", row[0])}
