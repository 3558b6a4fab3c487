"""A measurement in a process of its own, whose result is a line of JSON on stdout."""

from __future__ import annotations

import json
import os
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
    """Run ``command`` → what its last line says; EngineError with its last words when it fails."""
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
        raise EngineError(f"{name} does not run: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
