"""What a call may hold, and which models have K and V to fill in."""

from __future__ import annotations

import numpy as np
import pytest
from programs import PROGRAMS

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.engines.backend import Lanes, can_fill, fresh_tokens
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.program import Routing


def lanes(depth: list[int], tokens: list[int], width: int) -> Lanes:
    cached = np.full(len(depth), 4, np.int32)
    return Lanes(np.array(depth), cached, np.array(tokens, np.int32), cached[:, None] + np.arange(width))


def test_who_makes_keys_and_values_where_depths_share_them():
    assert fresh_tokens(lanes([0], [7], 7)) == 7
    assert fresh_tokens(lanes([2], [7], 7)) == 0
    assert fresh_tokens(lanes([0, 0], [1, 1], 1)) == 1
    assert fresh_tokens(lanes([1, 2], [1, 1], 1)) == 0


@pytest.mark.parametrize(
    ("depth", "tokens", "width", "message"),
    [
        ([0, 1], [1, 1], 1, "call depth 0 first"),
        ([1, 1], [3, 3], 3, r"2 lanes of \[3, 3\] valid tokens in 3"),
        ([1], [2], 3, r"1 lanes of \[2\] valid tokens in 3"),
        ([1, 1], [1, 0], 1, r"2 lanes of \[1, 0\] valid tokens in 1"),
    ],
)
def test_lanes_that_cannot_share(depth, tokens, width, message):
    with pytest.raises(UsageError, match=message):
        fresh_tokens(lanes(depth, tokens, width))


def test_who_shares_and_who_can_be_filled(maker):
    flat = (Segment(layers=2),)
    routing = Routing(kind="expert", squash="sigmoid", alpha=0.1)
    assert can_fill(maker.program())
    assert can_fill(maker.program(sliding_window=64))
    for program in (
        maker.program(flat),
        maker.program(kv="shared"),
        maker.program(routing=routing),
        maker.program(sliding_window=8),
    ):
        assert not can_fill(program)
    assert maker.program(kv="shared").shares_kv
    assert not maker.program(flat, kv="shared").shares_kv


def test_nothing_to_fill_is_refused(maker):
    program = maker.program(kv="shared")
    backend = maker.backend(program)
    with pytest.raises(UsageError, match="this model needs another policy"):
        backend.fill(np.zeros((1, 1, 32), np.float32), lanes([1], [1], 1), backend.new_cache(1, 8))


def test_what_has_nothing_to_fill():
    """No cache, as many as depths share, one of the tokens before: and what has them all to itself."""
    fills = {name for name, make in PROGRAMS.items() if can_fill(make())}
    assert fills == PROGRAMS.keys() - {"encoder", "shared", "routed", "parallel_loop", "twice"}
