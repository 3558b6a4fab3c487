"""The commands and the Python of the README and of the pages, run on a tiny checkpoint under the names that they use.

Blocks of ``sh`` and ``python`` are run; what takes long, or needs what a test has not, is in blocks of ``console``.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT, blocks

from edgeloop.export import export_bundle
from edgeloop.runtime.engines.native.library import unavailable_reason

README = ROOT / "README.md"
PAGES = [README, *sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {README})]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
Command = Callable[..., tuple[int, str, str]]


def commands(page: Path) -> list[str]:
    return [
        line
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("edgeloop ")
        and not line.startswith("edgeloop compare ")  # its shape is a 360M model
    ]


def anchors(page: Path) -> set[str]:
    """The names that headings have on the web: small letters, no punctuation, dashes for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``my-checkpoint``, two texts and a question on the keyboard, and in it."""
    shutil.copytree(checkpoint, tmp_path / "my-checkpoint")
    (tmp_path / "sentence.txt").write_text("Once upon a time there was a king.")
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))
    (tmp_path / "some.txt").write_text("Once upon a time there was a king. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_make_stands_first() -> None:
    first = blocks(README, "sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_commands(page: Path, place: Path, command: Command) -> None:
    lines = commands(page)
    export_bundle("my-checkpoint", "other", quant="int4")
    if not any("-o bundle " in line for line in lines):  # it makes its own
        shutil.copytree("other", "bundle")
    for line in lines:
        if "native" in line and unavailable_reason():  # no compiler
            continue
        code, _, err = command(*shlex.split(line, comments=True)[1:])
        assert code == 0, f"{line}\n{err}"
    if page == README:
        assert {"show", "export", "run", "eval", "bench"} <= {line.split()[1] for line in lines}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page != README:
        export_bundle("my-checkpoint", "bundle", quant="int4")
    names: dict[str, object] = {}  # a block may go on with what one above it has opened
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"
