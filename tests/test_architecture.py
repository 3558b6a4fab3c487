"""docs/architecture.md and its picture name files that are there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("runtime", "export", "quant", "apps")


def test_the_page_names_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/.]*)`", text)
    assert len(set(named)) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("folder", ["runtime/model", "runtime/decode"])
def test_the_tables_of_files(folder: str) -> None:
    """A row for what is worth reading, and none for a file that has gone."""
    section = (
        PAGE.read_text(encoding="utf-8").partition(f"## The files of `{folder}/`")[2].partition("\n## ")[0]
    )
    names = [
        name for line in section.splitlines() for name in re.findall(r"`(\w+\.py)`", line.split(" | ")[0])
    ]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / folder / name).is_file()] == []


def test_the_picture_names_what_is_there() -> None:
    """A file's name stands behind its folder, or in a line below it."""
    root = ElementTree.parse(PAGE.with_suffix(".svg")).getroot()
    lines = [
        text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "f"
    ]
    folder, found = "", []
    for line in lines:
        if place := re.match(rf"(?:{'|'.join(FOLDERS)})/[\w/]*/", line):
            folder = place[0].partition("NAME")[0]
        for name in re.findall(r"(?:[a-z_]+/)*[a-z_]+\.py", line):
            found.append(name)
            places = (name, f"{folder}{name}", f"runtime/{name}", f"runtime/decode/{name}")
            anywhere = any((ROOT / place).is_file() for place in places)
            assert anywhere or any((ROOT / folder).glob(f"*/{name}")), name
    assert len(found) > 15


def test_nothing_is_cut_at_the_edges() -> None:
    """Boxes lie inside of the picture, with room for their outline."""
    root = ElementTree.parse(PAGE.with_suffix(".svg")).getroot()
    _, _, width, height = (float(size) for size in root.attrib["viewBox"].split())
    boxes = [box.attrib for box in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in box.attrib]
    assert len(boxes) > 12
    for box in boxes:
        assert float(box["x"]) >= 10
        assert float(box["y"]) >= 10
        assert float(box["x"]) + float(box["width"]) <= width - 10
        assert float(box["y"]) + float(box["height"]) <= height - 10
