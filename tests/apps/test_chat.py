"""Conversations of ``edgeloop chat`` and ``run``: what is run again, commands, and files that they come back from."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgeloop.apps.console import Console
from edgeloop.apps.run import tell
from edgeloop.runtime.serve.requests import Step
from edgeloop.runtime.text.reasoning import ReasoningStream

Command = Callable[..., tuple[int, str, str]]
Chat = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def chat(bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """``chat("Hi\\nYes", "-n", 3)`` → the turns."""

    def run(lines: str, *words: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code, out, err = command("chat", bundle, "--json", *words)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return run


def test_only_what_is_new_is_run(chat: Chat) -> None:
    turns = chat("Hi\nYes\nNo\n", "-n", 2)
    assert turns[0]["prefill_tokens"] == turns[0]["prompt_tokens"]
    for before, turn in pairwise(turns):  # the text of an answer may be written in other tokens than it had
        assert 1 < turn["prefill_tokens"] <= turn["prompt_tokens"] - before["prompt_tokens"]


def test_regenerate_runs_one_token_and_is_another_answer(chat: Chat) -> None:
    turns = chat("Hi\n/regenerate\n/regenerate\nYes\n", "-n", 4, "--temperature", 2, "--seed", 3)
    assert [turn["prompt"] for turn in turns] == ["Hi", "Hi", "Hi", "Yes"]
    assert [turn["prefill_tokens"] for turn in turns[1:3]] == [1, 1]
    assert len({tuple(turn["tokens"]) for turn in turns[:3]}) == 3
    again = chat("Hi\n/regenerate\n", "-n", 4)
    assert again[0]["tokens"] == again[1]["tokens"]  # the likeliest one


def test_reset_forgets(chat: Chat) -> None:
    first, second = chat("Hi\n/reset\nHi\n", "-n", 3)
    assert (second["tokens"], second["prefill_tokens"]) == (first["tokens"], first["prompt_tokens"])


def test_a_conversation_comes_back(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    whole = chat("Hi\nYes\nNo\n", "-n", 2)
    turns = [turn for line in ("Hi\n", "Yes\n", "No\n") for turn in chat(line, "-n", 2, "--session", file)]
    assert [turn["tokens"] for turn in turns] == [turn["tokens"] for turn in whole]
    assert [turn["prefill_tokens"] for turn in turns] == [turn["prefill_tokens"] for turn in whole]
    parts = chat(f"Hi\n/save {file}\nBut\n/load {file}\nYes\n", "-n", 2)
    assert parts[2]["tokens"] == whole[1]["tokens"]
    chat(f"Hi\n/save {file}\n", "-n", 2)
    (other,) = chat("/regenerate\n", "-n", 2, "--session", file)
    assert (other["prompt"], other["tokens"]) == ("Hi", whole[0]["tokens"])


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_conversation_outlives_its_process(chat: Chat, bundle: Path, tmp_path: Path) -> None:
    """Killed once the answer is there, whatever would have come then."""
    file = tmp_path / "talk.session"
    command = [sys.executable, "-m", "edgeloop.apps.cli", "chat", str(bundle), "-n", "2", "--json"]
    with subprocess.Popen(
        [*command, "--session", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Hi\n")
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        process.kill()
    (second,) = chat("Yes\n", "-n", 2, "--session", file)
    assert [first["tokens"], second["tokens"]] == [turn["tokens"] for turn in chat("Hi\nYes\n", "-n", 2)]


def test_commands_that_cannot_be_done(
    bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.session"
    for line, message in (
        ("/save", "/save without a file; say which one: /save FILE"),
        (f"/load {file}", f"cannot read {file}: No such file or directory"),
        ("/regenerate", "there is no answer at the end of the context"),
        (
            "/forget",
            "there is no command /forget, only /help, /regenerate, /reset, /save, /load; to say the line",
        ),
        ("/", "there is no command /,"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line + "\n"))
        code, out, err = command("chat", bundle)
        assert (bool(code), out, err.count("\n")) == (True, "", 1)
        assert message in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    command("chat", bundle, "-n", 1, "--system", "Fox.", "--session", file)
    before = file.read_bytes()
    for words, message in (
        (("--system", "Owl."), "is a conversation that has begun otherwise; leave --system out"),
        (("--exit", "depth:1"), "saved with --exit never, this session has depth:1"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        code, _, err = command("chat", bundle, "--session", file, *words)
        assert code
        assert message in err
    assert file.read_bytes() == before
    text = tmp_path / "text.session"
    command("run", bundle, "-p", "Once", "-n", 1, "--session", text)
    kept = text.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    code, _, err = command("chat", bundle, "--session", text)
    assert code
    assert "holds a text that is no conversation; go on with it by `edgeloop run --session`" in err
    assert text.read_bytes() == kept
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "back in" in command("chat", bundle, "--session", file)[2]
    file.write_bytes(before[:-1])
    code, _, err = command("chat", bundle, "--session", file)
    assert (code, err.count("\n")) == (1, 1)
    assert "save the session again" in err


def test_a_place_that_is_none_is_refused_before_an_answer(
    bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    for words in (("chat", bundle), ("run", bundle, "-p", "Once")):
        code, out, err = command(*words, "-n", 1, "--session", tmp_path / "none" / "a.session")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "to save in; make it first" in err


def test_help_and_lines_that_are_no_commands(
    chat: Chat, bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n"))
    code, out, err = command("chat", bundle)
    assert (code, out) == (0, "")
    assert "/regenerate: another answer to the last line\n/reset: forget" in err
    turns = chat(" /reset\n/a/path\n", "-n", 1)
    assert [turn["prompt"] for turn in turns] == [" /reset", "/a/path"]


def test_a_full_context_is_shifted_seldom(chat: Chat) -> None:
    """Down to half of the room: the turns after that are short again."""
    turns = chat("I am.\n" * 12, "-n", 1)
    shifted = [i for i, turn in enumerate(turns) if turn["forgotten_messages"]]
    assert len(shifted) > 1
    assert all(later - earlier > 1 for earlier, later in pairwise(shifted))
    for turn in turns:
        assert turn["prompt_tokens"] <= 64 - 1
        if not turn["forgotten_messages"]:
            assert turn["prefill_tokens"] < 24


def test_run_goes_on(bundle: Path, command_json: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "story.session"
    first = command_json("run", bundle, "-p", "Once", "-n", 3, "--session", file)
    assert first["tokens"] == command_json("run", bundle, "-p", "Once", "-n", 3)["tokens"]
    second = command_json("run", bundle, "-p", " and", "-n", 3, "--session", file)
    assert second["prefill_tokens"] == second["prompt_tokens"] - first["prompt_tokens"] - 2
    other = tmp_path / "talk.session"
    for prompt in ("Hi", "Yes"):
        found = command_json("run", bundle, "-p", prompt, "-n", 2, "--chat", "--session", other)
    assert found["prefill_tokens"] <= found["prompt_tokens"] - 7  # what was there before the first answer


@pytest.mark.parametrize(
    ("opened", "kept_back", "thought", "said"),
    [(False, "  <thi", None, "  <thi"), (True, "Hm </thin", "Hm </thin", "")],
)
def test_what_was_kept_back_when_an_answer_is_ended(
    capsys: pytest.CaptureFixture[str], opened: bool, kept_back: str, thought: str | None, said: str
) -> None:
    """Ctrl-C where a tag might have begun: its text is shown, and is part of the message that is remembered."""

    def answer() -> Iterator[Step]:
        for n, text in enumerate(kept_back):
            yield Step(text, n, 1, 1.0)
        raise KeyboardInterrupt

    parted = ReasoningStream(opened)
    with pytest.raises(KeyboardInterrupt):
        tell(answer(), Console(), parted=parted)
    assert (parted.reasoning, parted.answer) == (thought, said)
    out, err = capsys.readouterr()
    assert (thought or "") in err
    assert said in out
