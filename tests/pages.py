"""The README and the pages, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: Path, language: str) -> list[str]:
    """Every block of ``page`` in ``language``, in order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def page_table(page: str, heading: str) -> dict[str, list[str]]:
    """The tables under a heading of docs/PAGE.md: by every `name` in a row's first cell, its other cells."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {name: row[1:] for row in cells[1:] for name in re.findall(r"`(.+?)`", row[0])}
