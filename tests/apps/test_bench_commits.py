"""``edgeloop bench --compare commit:A commit:B``: a turn is a process of that commit's files, which are gone then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeloop.apps.measure import commits

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]

RUNNER = """
import time
from collections import namedtuple
from dataclasses import dataclass

Wrote = namedtuple("Wrote", "prefill tokens")

@dataclass
class Setup:
    bundle: str
    engine: str | None = None

class Opened:
    @classmethod
    def of(cls, setup):
        made = cls()
        made.backend = namedtuple("Backend", "name")("pretended")
        return made

class Runner:
    def __init__(self, opened, setup, tokens): pass
    def read(self, prompt): pass
    def run(self, prompt, tokens): return Wrote(8.0 / SPEED, (2.0 / SPEED,) * tokens)
"""
BUILD = "raise SystemExit('no compiler today')"
FILES = {
    "__init__.py": "",
    "apps/__init__.py": "",
    "apps/measure/__init__.py": "",
    "runtime/__init__.py": "",
    "runtime/errors.py": "class EdgeloopError(Exception): pass",
    "runtime/engines/__init__.py": "",
    "runtime/engines/native/__init__.py": "",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """A tiny repository that stands for this one: ``commit(tag, files)`` commits files and tags them."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.setattr(commits, "ROOT", root.resolve())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True)

    def commit(tag: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        git("add", "-A")
        git("commit", "-qm", tag)
        git("tag", tag)

    git("init", "-q")
    commit("before", FILES)
    return commit


def runner(speed: int) -> dict[str, str]:
    return {commits.NEEDED: f"SPEED = {speed}\n{RUNNER}", "runtime/engines/native/build.py": "made = True"}


def test_commits_take_turns(
    repository: Callable[[str, dict[str, str]], None], bundle: Path, tmp_path: Path, command_json: CommandJson
) -> None:
    """What each commit's own files say is what is compared; nothing of them is left."""
    repository("slow", runner(1))
    repository("fast", runner(4))
    found = command_json(
        "bench", bundle, "--compare", "commit:slow", "commit:fast", "-p", 8, "-n", 4, "--runs", 2
    )
    measures = {m["name"]: m["value"]["median"] for m in found["record"]["measures"]}
    assert measures["decode, commit:fast ÷ commit:slow"] == pytest.approx(4)
    assert measures["prefill, commit:slow"] == pytest.approx(1000)
    assert measures["decode, commit:slow"] == pytest.approx(500)
    assert (found["record"]["engine"], found["record"]["turns"]) == ("pretended", 4)
    assert found["record"]["bundle"]["name"] == bundle.name
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("commit:slow", "commit:nothing"), "has no commit 'nothing'"),
        (("commit:slow", "commit:"), "has no commit ''"),
        (("commit:slow", "commit:--all"), "has no commit '--all'"),
        (("commit:slow", "commit:before"), "is from before apps/measure/runner.py"),
        (
            ("commit:slow", "commit:broken"),
            "the lane engine of commit broken is not compiled: no compiler today",
        ),
        (("commit:slow", "commit:slow --kv-bits 8"), "this commit has no --kv-bits"),
        (("commit:slow", "commit:slow"), "wanted two or more contenders that differ"),
    ],
)
def test_what_is_no_contender_is_one_line(
    words: tuple[str, ...], said: str, repository: Callable[[str, dict[str, str]], None],
    bundle: Path, tmp_path: Path, command: Command,
) -> None:  # fmt: skip
    repository("broken", runner(1) | {"runtime/engines/native/build.py": BUILD})
    repository("slow", runner(1))
    code, out, err = command("bench", bundle, "--compare", *words, "-p", 8, "-n", 4, "--runs", 1)
    assert (code in (1, 2), out) == (True, "")
    assert said in err.splitlines()[-1]  # before it stands how far it came
    assert err.count("edgeloop: ") == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_bundle_no_checkout_and_no_git(
    tmp_path: Path, bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--compare", "commit:HEAD", "commit:HEAD~1", "-p", 8, "-n", 4)
    code, _, err = command("bench", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "a bundle before --compare is that of all commits" in err
    monkeypatch.setattr(commits, "ROOT", tmp_path)
    code, _, err = command("bench", bundle, *words)
    assert code == 2
    assert f"needs edgeloop in a git checkout, and {tmp_path} is none" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs git, which is not installed" in command("bench", bundle, *words)[2]


def test_a_turn_of_this_edgeloop(bundle: Path) -> None:
    """The file that runs a turn, with the runner as it is."""
    from edgeloop.apps.measure.child import run_process
    from edgeloop.apps.measure.runner import Setup
    from edgeloop.apps.measure.versus import TURN, _said

    said = _said(Setup(str(bundle), "onnx", threads=1))
    found = run_process("it", [sys.executable, "-P", str(TURN), said, "[1, 2, 3]", "4"])
    assert (found["engine"], len(found["tokens"])) == ("onnx", 4)
    assert min(found["prefill"], *found["tokens"]) > 0
