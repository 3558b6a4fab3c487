"""Runs an action again and again in forks of one process, and kills each at its next step on the disk.

``python killing.py MODULE FOLDER [no-exchange]``: MODULE has ``prepare(folder)``, ``action(folder)`` and
``state(folder)``. Prints a JSON list: what ``state`` says after each kill and, last, after the whole action.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = ("rename", "replace", "mkdir", "rmdir", "unlink", "link", "fsync")


def kill_at(step: int, exchange: bool) -> None:
    """This process kills itself instead of taking the step of that number."""
    import edgeloop.export.bundle.staging as staging
    import edgeloop.runtime.bundle.exchange as names

    taken = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **more)

        return wrapped

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    staging.exchange = names.exchange = counted(names.exchange) if exchange else lambda one, other: False


def main(module: str, folder: Path, exchange: bool) -> list[str]:
    scenario = importlib.import_module(module)
    found = []
    for step in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        scenario.prepare(folder)
        child = os.fork()
        if not child:
            kill_at(step, exchange)
            try:
                scenario.action(folder)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit("the action failed")
        found.append(scenario.state(folder))
        if os.WIFEXITED(status):
            return found
    raise SystemExit("there is no end to the steps")


if __name__ == "__main__":
    json.dump(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:] != ["no-exchange"]), sys.stdout)
