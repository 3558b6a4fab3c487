"""Text at the doors of the command line: UTF-8 under any locale, or one line that says what it is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.apps import intake
from edgeloop.runtime.errors import UsageError

Command = Callable[..., tuple[int, str, str]]
LATIN = b"caf\xe9\n"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``stdin(data)``: what the command reads, through a stream of an encoding that must not matter."""

    def give(data: bytes, encoding: str = "ascii") -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))

    return give


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("Grüße 👋".encode(), "Grüße 👋"),
        (b"\xef\xbb\xbfOnce", "Once"),
        (b"", ""),
        (b"a\0b", "a\0b"),
        (LATIN, "x is not UTF-8 text .byte 3 is 0xE9.; save or convert it as UTF-8"),
        (b"\xed\xa0\xbd", "x is not UTF-8 text .byte 0 is 0xED."),
        ("Once".encode("utf-16"), "x is UTF-16 text, wanted UTF-8"),
        (b"\xfe\xff\0O", "x is UTF-16 text"),
        ("Once".encode("utf-32"), "x is UTF-32 text"),
    ],
)
def test_bytes(data: bytes, wanted: str) -> None:
    if wanted.startswith("x is"):
        with pytest.raises(UsageError, match=wanted):
            intake.decoded(data, "x")
    else:
        assert intake.decoded(data, "x") == wanted


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_last_newline_is_not_the_prompts(stdin: Callable[..., None], newline: str) -> None:
    stdin(f"{newline}Once{newline}{newline}".encode())
    assert intake.prompt_text("-") == f"{newline}Once{newline}"
    stdin(b"Once\r")
    assert intake.prompt_text("-") == "Once\r"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "caf\udce9"],
        ["run", "-p", "a\ud83d"],
        ["run", "-p", "a", "--stop", "\udcff"],
        ["chat", "--system", "\udcff"],
        ["run", "-p", "-"],
        ["eval", "--text", "-"],
        ["chat"],
        ["chat", "--json"],
    ],
)
def test_every_door(bundle: Path, command: Command, stdin: Callable[..., None], words: list[str]) -> None:
    stdin(LATIN)
    code, out, err = command(words[0], bundle, *words[1:])
    assert (code, out) == (2, "")
    assert err.startswith("edgeloop: ")
    assert "is not UTF-8 text" in err
    assert err.count("\n") == 1


def test_chat_reads_utf8_whatever_the_stream_says(
    bundle: Path, command: Command, stdin: Callable[..., None]
) -> None:
    stdin("\ufeffGrüße\r\nBye".encode())
    code, out, err = command("chat", bundle, "-n", 1, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["Grüße", "Bye"]
    stdin(b"Hi\n" + LATIN)
    code, out, err = command("chat", bundle, "-n", 1, "--json")
    assert (code, err) == (
        2,
        "edgeloop: line 2 of stdin is not UTF-8 text (byte 3 is 0xE9); save or convert it as UTF-8\n",
    )
    assert json.loads(out)["prompt"] == "Hi"


def test_a_person_who_types_what_is_no_text_can_type_again(
    bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def typed(prompt: str) -> str:
        line = lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    broken = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")
    lines: list[str | Exception] = ["caf\udce9", broken, "Gr\udcc3\udcbc\udcc3\udc9fe", EOFError()]
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    code, out, err = command("chat", bundle, "-n", 1, "--json")
    assert code == 0
    assert err.count("\n") == 2
    assert "the line is not UTF-8 text: character 4 is the byte 0xE9" in err
    assert "the line is no utf-8 text" in err
    if sys.getfilesystemencoding() == "utf-8":  # bytes that a locale without UTF-8 has left as they were
        assert json.loads(out.splitlines()[0])["prompt"] == "Grüße"


@pytest.mark.parametrize("words", [["run", "-p", "-"], ["chat"]])
def test_a_closed_stdin(
    bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = command(words[0], bundle, *words[1:])
    closed = "edgeloop: stdin is closed, so there is no text to read; give a file or a pipe\n"
    assert (code, err) == ((0, "") if words[0] == "chat" else (2, closed))


@pytest.mark.skipif(os.name != "posix", reason="bytes as arguments")
def test_arguments_are_utf8_under_a_locale_that_knows_none(bundle: Path) -> None:
    """Python then reads them as ASCII with surrogates: the bytes are what was meant."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(prompt: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "edgeloop.apps.cli",
                "run",
                str(bundle),
                "-p",
                prompt,
                "-n",
                "1",
                "--json",
            ],
            env={**os.environ, **plain},
            capture_output=True,
            timeout=120,
        )

    found = run("Grüße".encode())
    assert (found.returncode, found.stderr) == (0, b"")
    assert json.loads(found.stdout)["prompt_tokens"] == len("Grüße".encode())
    found = run(b"caf\xe9")
    assert found.returncode == 2
    assert b"the prompt is not UTF-8 text: character 4 is the byte 0xE9" in found.stderr


def test_the_beginning_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffabc äöü".encode())
    assert intake.read_text(str(path)) == "abc äöü"
    assert [intake.read_text(str(path), 3 + n) for n in (0, 2, 4, 5, 6, 7, 8)] == [
        "", "ab", "abc ", "abc ", "abc ä", "abc ä", "abc äö",
    ]  # fmt: skip
    path.write_bytes(b"ab\xff and more")
    with pytest.raises(UsageError, match="byte 2 is 0xFF"):
        intake.read_text(str(path), 8)
