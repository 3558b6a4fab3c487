"""JSON as a manifest has it."""

from __future__ import annotations

import json

import msgspec
import pytest
from programs import PROGRAMS

from edgeloop.runtime.bundle.json_text import WIDTH, json_text
from edgeloop.runtime.model.ops import Rotate


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_an_op_is_a_line(name: str) -> None:
    """But for rotations by scaled frequencies."""
    program = PROGRAMS[name]()
    text = json_text(program)
    assert msgspec.json.decode(text, type=type(program)) == program
    ops = [op for stage in program.stages for op in stage.ops]
    long = sum(isinstance(op, Rotate) and op.by.scaling is not None for op in ops)
    assert len(ops) - long <= text.count(b'{"op": ') <= len(ops)
    assert max(map(len, text.splitlines())) <= WIDTH + 1


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        1e-5,
        'a\n\u2028"é',
        {"a": []},
        [[1] * 200, {"b" * 200: {"c": [None, True]}}],
        {"x": [{}] * 99},
    ],
)
def test_it_says_what_was_given(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert json_text(json.loads(text)) == text
