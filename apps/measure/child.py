"""A measurement in a process of its own, whose result is a line of JSON on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.errors import EngineError


def run_child(
    name: str, module: str, words: Sequence[str], environment: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Run ``module`` of this package with ``words`` → what it says; EngineError with its last words when it fails.

    ``name`` is how the error calls it.
    """
    return run_process(name, [sys.executable, "-m", f"edgeloop.apps.{module}", *words], environment)


def run_process(name: str, command: Sequence[str], environment: Mapping[str, str] = {}) -> dict[str, Any]:
    """Run ``command`` → what its last line says; EngineError with its last words when it fails, with the signal that
    ended it where there are none, or where that line is no JSON."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise EngineError(f"{name} does not run: {_signal(done.returncode) or lines[-1]}")
    said = done.stdout.strip().splitlines() or ["nothing"]
    try:
        found: dict[str, Any] = json.loads(said[-1])
    except ValueError as error:
        raise EngineError(f"{name} says {said[-1]!r:.80} in the place of a result") from error
    return found


def _signal(code: int) -> str:
    """What ended a process with this exit code, if a signal did."""
    if code >= 0:
        return ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = ", as the system does where memory is short" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{more}"
