"""Pipelined decoding on the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
Json = Callable[..., Any]
PROMPT = ("-p", "the river", "-n", 24)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    """In float arithmetic, where a call with more rows rounds no activations."""
    from edgeloop.apps.cli import main

    out = checkpoint.with_name("float_bundle")
    assert main(["export", str(checkpoint), "-o", str(out), "--quant", "none", "--json"]) == 0
    return out


@pytest.mark.parametrize("sampling", [(), ("--temperature", 0.9, "--seed", 3, "--repetition-penalty", 1.2)])
def test_run_writes_the_same(bundle: Path, command_json: Json, sampling: tuple[object, ...]) -> None:
    plain = command_json("run", bundle, *PROMPT, *sampling)
    found = command_json("run", bundle, *PROMPT, *sampling, "--decode", "pipelined")
    assert found["tokens"] == plain["tokens"]
    assert found["text"] == plain["text"]
    assert (plain["decode"], found["decode"]) == ("sequential", "pipelined")
    assert plain["acceptance"] is None
    assert plain["passes_per_token"] == 3
    assert 0 <= found["acceptance"] <= 1
    assert found["passes_per_token"] >= 1


def test_the_cost_names_passes_and_drafts(bundle: Path, command: Command) -> None:
    code, _, err = command("run", bundle, *PROMPT, "--decode", "pipelined")
    assert code == 0
    assert " passes a token (" in err
    assert "of drafts right" in err
    assert "passes" not in command("run", bundle, *PROMPT)[2]


def test_chat_takes_turns(bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*words: str) -> list[Any]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the river\na goblin\n")))
        code, out, err = command("chat", bundle, "-n", 9, "--json", *words)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    plain, found = answers(), answers("--decode", "pipelined")
    assert [turn["tokens"] for turn in found] == [turn["tokens"] for turn in plain]
    assert found[1]["acceptance"] is not None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--decode", "both"), "decode 'both'; known: sequential, pipelined"),
        (("--decode", "pipelined", "--kv", "last"), "one KV slot for all depths"),
    ],
)
def test_refusals_are_one_line(bundle: Path, command: Command, words: tuple[str, ...], told: str) -> None:
    code, out, err = command("run", bundle, *PROMPT, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert told in err
