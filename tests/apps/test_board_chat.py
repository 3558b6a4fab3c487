"""``edgeloop board … run`` and ``chat`` behind a real sshd, with either host, by a pipe and at a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from board_server import Board, missing, reached
from installed_wheels import wheel_of
from person import PATIENCE, Person

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.skipif(missing() != "", reason=missing())
LINES = ("the king", "a child")
"""The model has room for both, and for what it says."""
PACKAGES = ("msgspec", "numpy", "safetensors", "tokenizers", "rich", "jinja2", "markupsafe", "pygments")
EDGELOOP = (sys.executable, "-m", "edgeloop.apps.cli")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with reached(tmp_path_factory.mktemp("board")) as found:
        yield found


@pytest.fixture(scope="module")
def answers(native_bundle: Path) -> list[str]:
    """What this computer answers to each of the lines, in one conversation."""
    words = ("chat", native_bundle, "--engine", "native", "-n", 8, "--temperature", 0, "--json")
    return [turn["text"] for turn in turns(edgeloop(*words))]


def edgeloop(*words: object) -> str:
    """What the command writes that is given the lines by a pipe; it says nothing else."""
    done = subprocess.run(
        [*EDGELOOP, *map(str, words)], input="".join(f"{line}\n" for line in LINES), capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def turns(written: str) -> list[Any]:
    """The lines of JSON."""
    return [json.loads(line) for line in written.splitlines()]


def test_a_chat_with_the_host_in_cpp(
    there: Board, native_bundle: Path, static_host: Path, answers: list[str], command: Command
) -> None:
    """By a pipe, and at a terminal, where Ctrl-C ends an answer and Ctrl-D the conversation."""
    assert command("board", "--json", there.address, "push", native_bundle)[0] == 0
    chat = ("board", there.address, "chat", native_bundle.name)
    assert edgeloop(*chat, "-n", 8) == "".join(f"> {answer}\n" for answer in answers) + "> "
    person = Person(*EDGELOOP, *chat, "-n", 8)
    person.waits_for("> ")
    for line, answer in zip(LINES, answers, strict=True):
        person.types(f"{line}\n")
        assert person.waits_for("\n> ") == f"{line}\n{answer}\n> "
    person.types("\x04")
    assert person.ended() == 0
    assert command("board", there.address, "remove", native_bundle.name)[0] == 0
    assert list(there.home.iterdir()) == []


def test_edgeloop_in_python_lives_on_a_board(
    there: Board, native_bundle: Path, tmp_path: Path, lane_engine: Path, answers: list[str], command: Command
) -> None:
    """Pushed once, run, talked to by a pipe and at a terminal, measured, removed."""
    for package in PACKAGES:
        wheel_of(package, tmp_path)
    python = ("board", "--host", "python", "--json")
    push = (*python, "--engine", "native", "--wheels", tmp_path, there.address, "push", native_bundle)
    code, out, err = command(*push)
    assert (code, err) == (0, ""), err
    assert json.loads(out)["sent_bytes"] > 0
    assert json.loads(command(*push)[1])["sent_bytes"] == 0
    home = there.home / ".edgeloop"
    assert sorted(path.name for path in home.iterdir()) == ["bundles", "site"]
    name = native_bundle.name
    chat = (*python[:3], there.address, "chat", name)
    talk = ("--engine", "native", "-n", 8, "--temperature", 0)
    assert [turn["text"] for turn in turns(edgeloop(*chat, *talk, "--json"))] == answers
    ask = ("-p", "the king", "-n", 4, "--temperature", 0, "--engine", "native", "--json")
    own = json.loads(edgeloop("run", native_bundle, *ask))
    assert json.loads(edgeloop("board", there.address, "run", name, *ask))["text"] == own["text"]
    person = Person(*EDGELOOP, *chat, *talk)
    person.waits_for("> ")
    person.types(f"{LINES[0]}\n")
    shown = person.waits_for("\n> ")  # characters that steer a terminal are not sent to one
    assert "".join(c for c in answers[0] if c.isprintable()).strip() in shown
    assert "the answer has 8 tokens" in shown
    person.types("\x04")
    assert person.ended() == 0
    code, out, err = command("board", there.address, "bench", native_bundle, "-p", 8, "-n", 4, "--runs", 1,
                             "--seconds", 1, "--json")  # fmt: skip
    assert (code, err) == (0, ""), err
    assert json.loads(out)["record"]["engine"] == "native"
    assert command("board", there.address, "remove", name)[0] == 0
    assert list(there.home.iterdir()) == []


def test_a_failure_there_is_one_here(
    there: Board, native_bundle: Path, static_host: Path, command: Command
) -> None:
    """The line of what runs there, and its exit code."""
    assert command("board", "--json", there.address, "push", native_bundle)[0] == 0
    for words in (("--nothing",), ("--exit", "depth:99"), ("--load", "nowhere")):
        done = subprocess.run(
            [*EDGELOOP, "board", there.address, "run", native_bundle.name, "-p", "x", *words],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.returncode in (1, 2), done.stderr.count("\n")) == (True, 1), done.stderr
        assert done.stderr.startswith("edgeloop-run: ")
    assert command("board", there.address, "remove", native_bundle.name)[0] == 0
