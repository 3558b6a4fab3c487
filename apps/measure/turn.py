"""One turn in a process of its own, of whichever edgeloop comes first on its path: python -P turn.py SETUP IDS TOKENS.

SETUP is a ``Setup`` as JSON without what is as ever, IDS the prompt's tokens. A commit that is compared runs this file,
so it uses nothing of its edgeloop but the names of ``measure/runner.py``. The prompt is read once before it counts; the
last line is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import msgspec
import numpy as np

from edgeloop.apps.measure.runner import Opened, Runner, Setup
from edgeloop.runtime.errors import EdgeloopError


def run(given: dict[str, object], ids: list[int], tokens: int) -> dict[str, object]:
    """Read the prompt ``ids`` and write ``tokens`` tokens → milliseconds of both, and the engine's name."""
    names = {each.name for each in dataclasses.fields(Setup)}
    if unknown := next((name for name in given if name not in names), None):
        raise SystemExit(f"this commit has no --{unknown.replace('_', '-')}")
    setup = msgspec.convert(given, Setup)
    opened = Opened.of(setup)
    runner = Runner(opened, setup, len(ids) + tokens)
    prompt = np.array(ids, np.int64)
    runner.read(prompt)
    wrote = runner.run(prompt, tokens)
    return {"prefill": wrote.prefill, "tokens": wrote.tokens, "engine": opened.backend.name}


if __name__ == "__main__":
    try:
        found = run(json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
    except EdgeloopError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(found) + "\n")
