"""The examples of docs/sessions.md, run on a tiny bundle under the names that they use."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT, blocks

DOCUMENT = ROOT / "docs" / "sessions.md"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in blocks(DOCUMENT, "python"):
        exec(compile(code, str(DOCUMENT), "exec"), names)
        assert capsys.readouterr().out
    assert (place / "story.session").is_file()


def test_commands(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (line for block in blocks(DOCUMENT, "sh") for line in block.splitlines()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        code, _, err = command(*shlex.split(line, comments=True)[1:])
        assert code == 0, f"{line}\n{err}"
    assert (place / "talk.session").is_file()


def test_the_drawing_is_a_command_s(place: Path, command_json: Callable[..., object]) -> None:
    found = command_json("bench", "bundle", "--chat", 3, "--svg", "turns.svg")
    assert isinstance(found, dict)
    new = [turn["grown"] for turn in found["turns"]]
    assert [turn["prompt"] for turn in found["turns"]] == [10, 30, 50]
    assert new == [10, 11, 11]  # with the last token of the answer
    assert found["saved"][1]["tokens"] == 60
    drawn = (place / "turns.svg").read_text(encoding="utf-8")
    assert drawn.count("<polyline") == 2
    stored = DOCUMENT.with_name("sessions.svg").read_text(encoding="utf-8")
    assert re.sub(r"[\d.]+", "0", drawn)[:120] == re.sub(r"[\d.]+", "0", stored)[:120]
