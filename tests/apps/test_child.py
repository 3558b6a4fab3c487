"""Processes that a benchmark starts: one that fails is an error of one line that says what happened to it."""

from __future__ import annotations

import sys

import pytest

from edgeloop.apps.measure.child import run_process
from edgeloop.runtime.errors import EngineError


def run(code: str) -> dict[str, object]:
    return run_process("a turn", [sys.executable, "-c", code])


def test_the_last_line_is_the_result() -> None:
    assert run("import json; print(1); print(json.dumps({'ms': 2}))") == {"ms": 2}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('edgeloop: no such engine')", "a turn does not run: edgeloop: no such engine"),
        ("raise SystemExit(3)", "a turn does not run: no message"),
        ("print('half a res')", "a turn says 'half a res' in the place of a result"),
        ("pass", "a turn says 'nothing' in the place of a result"),
    ],
)
def test_a_failure_is_what_it_is(code: str, said: str) -> None:
    with pytest.raises(EngineError) as caught:
        run(code)
    assert str(caught.value) == said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_process_that_was_killed_says_so() -> None:
    """A warning that it wrote before is not why."""
    with pytest.raises(EngineError) as caught:
        run("import os, sys; print('a warning', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)")
    assert str(caught.value) == (
        "a turn does not run: its process was ended by SIGKILL, as the system does where memory is short"
    )
