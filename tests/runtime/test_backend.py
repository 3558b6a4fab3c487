"""What a call may hold, and which models have K and V to fill in."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.backend import Lanes, can_fill, fresh_tokens, shares_kv
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.spec import Routing, Segment


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
    assert can_fill(maker.spec())
    assert can_fill(maker.spec(sliding_window=64))
    for spec in (
        maker.spec(flat),
        maker.spec(kv="shared"),
        maker.spec(routing=routing),
        maker.spec(sliding_window=8),
    ):
        assert not can_fill(spec)
    assert shares_kv(maker.spec(kv="shared"))
    assert not shares_kv(maker.spec(flat, kv="shared"))


def test_nothing_to_fill_is_refused(maker):
    spec = maker.spec(kv="shared")
    backend = maker.backend(spec)
    with pytest.raises(UsageError, match="this model needs another policy"):
        backend.fill(np.zeros((1, 1, 32), np.float32), lanes([1], [1], 1), backend.new_cache(1, 8))
