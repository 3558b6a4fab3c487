"""The glossary's links lead somewhere, and the product's own text keeps to its words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRY = re.compile(r"^\| (?!word \||-)(?P<word>.+?) \| (?P<meaning>.+?) \| (?P<links>.+) \|$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#([^)]+))?\)")

ELSEWHERE = re.compile(
    r"\b(prelude|coda|wish|wishes|company|course|riddle|by lot|in lots|what ships|[Ww]ho (leaves|stops|goes)|[Tt]old)\b"
)
"""Words that mean something else here, or nothing to a newcomer: the glossary, or plain English, has others."""
THEIRS = re.compile(r"``[^`]*``|`[^`]*`|authors call it the (prelude|coda)")
"""Names of others, as they stand in their files, in the places where they are quoted."""
PRODUCT = ("runtime", "export", "quant", "apps")
TALES = "apps/demo/dialogues.py"
"""Sentences of the demo model's training text."""


def entries() -> list[tuple[str, str]]:
    """(word, its links) of every line of the glossary."""
    return [(m["word"], m["links"]) for m in ENTRY.finditer(GLOSSARY.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#{1,6} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts() -> Iterator[tuple[str, str]]:
    """(place, text) of every docstring, message and help text of the product: strings with a blank in them."""
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name == TALES:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and " " in node.value.strip()
                ):
                    yield f"{name}:{node.lineno}", node.value


def test_every_word_is_there_once():
    words = [word for word, _ in entries()]
    assert len(words) > 50
    assert sorted(words) == sorted(set(words))
    for word in (
        "lane",
        "row",
        "depth",
        "pass",
        "slot",
        "draft",
        "exit",
        "prologue",
        "epilogue",
        "delta",
        "carry",
    ):
        assert word in words


@pytest.mark.parametrize(("word", "links"), entries(), ids=[word for word, _ in entries()])
def test_a_link_leads_to_a_page_and_a_heading(word, links):
    found = LINK.findall(links)
    assert found, f"{word} has no link"
    for place, anchor in found:
        page = (GLOSSARY.parent / place).resolve()
        assert page.is_file(), place
        assert not anchor or anchor in anchors(page), f"{place}#{anchor}"


def test_the_words_that_were_replaced_are_gone():
    found = [
        f"{place}: {match[0]}"
        for place, text in texts()
        if (match := ELSEWHERE.search(THEIRS.sub("", text))) is not None
    ]
    assert found == []
