"""A system that has no fcntl, resource, termios: the modules are taken away, and the verbs work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "readline", "syslog")
SITE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {ABSENT!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def edgeloop(tmp_path: Path):  # type: ignore[no-untyped-def]
    """``edgeloop("run", …)`` in a process without those modules."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "edgeloop.apps.cli", *map(str, words)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_modules_are_absent(edgeloop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import fcntl"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
    )
    assert b"No module named 'fcntl'" in done.stderr


def test_run_chat_show_audit_and_doctor(bundle: Path, edgeloop) -> None:  # type: ignore[no-untyped-def]
    assert len(json.loads(edgeloop("run", bundle, "-p", "Hi", "-n", 2, "--json"))["tokens"]) == 2
    assert edgeloop("chat", bundle, "-n", 2) == ""
    assert "layers" in edgeloop("show", bundle)
    assert "are accounted for" in edgeloop("audit", bundle)
    assert "onnx" in json.loads(edgeloop("doctor", "--json"))["engines"]


def test_export_and_replace(checkpoint: Path, tmp_path: Path, edgeloop) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out" / "bundle"
    for force in ([], ["--force"]):
        edgeloop("export", checkpoint, "-o", out, "--quant", "none", *force)
        assert [path.name for path in out.parent.iterdir()] == ["bundle"]
