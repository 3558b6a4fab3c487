"""What a request changes in a program whose layers differ."""

from __future__ import annotations

import pytest
from msgspec import structs
from programs import PROGRAMS

from edgeloop.export.family import Reading
from edgeloop.export.overrides import overridden
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import attentions


def reading(name: str) -> Reading:
    return Reading(PROGRAMS[name](), {}, frozenset())


def test_layers_keep_windows_of_their_own() -> None:
    assert overridden(reading("gemma")).program == reading("gemma").program
    short = overridden(reading("gemma"), context=3).program
    assert [op.window for op in attentions(short)] == [None] * 3  # a window of 4 is all of 3 tokens
    assert not list(problems(short))


def test_a_window_for_layers_that_have_their_own_is_refused() -> None:
    with pytest.raises(UsageError, match=r"windows of their own \(4, none\); leave --window out"):
        overridden(reading("gemma"), window=3)


@pytest.mark.parametrize(("window", "wanted"), [(None, 5), (3, 3), (7, 7), (32, None)])
def test_a_window_takes_the_place_of_the_family_s(window: int | None, wanted: int | None) -> None:
    program = overridden(reading("shared"), window=window).program
    assert {op.window for op in attentions(program)} == {wanted}
    assert program.window == wanted
    assert structs.replace(program, loop=reading("shared").program.loop) == reading("shared").program
