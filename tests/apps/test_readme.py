"""The README's commands and its Python, run on a tiny checkpoint under the names that the README uses."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.runtime.engines.native.library import unavailable_reason

README = Path(__file__).parents[2] / "README.md"
Command = Callable[..., tuple[int, str, str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``my-checkpoint`` and ``some.txt``, and in it."""
    shutil.copytree(checkpoint, tmp_path / "my-checkpoint")
    (tmp_path / "some.txt").write_text("Once upon a time there was a king. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_make_stands_first() -> None:
    first = blocks("sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_commands(place: Path, command: Command) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("edgeloop ")]
    verbs = []
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "compare":  # its shape is a 360M model
            continue
        if "bundle-native" in words and unavailable_reason():  # no compiler
            continue
        code, _, err = command(*words)
        assert code == 0, f"{line}\n{err}"
        verbs.append(words[0])
    assert {"show", "export", "run", "eval"} <= set(verbs)


def test_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}  # a block may go on with what one above it has opened
    for code in blocks("python"):
        exec(compile(code, str(README), "exec"), names)
        assert capsys.readouterr().out
    assert (place / "bundle" / "manifest.json").is_file()
