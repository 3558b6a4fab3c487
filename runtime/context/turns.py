"""Conversations that outgrow the context: the first messages stay, the oldest turns go, the newest stay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

Messages = list[dict[str, Any]]
LEADING = frozenset({"system", "developer"})
"""Roles of the messages that a conversation begins with, which are never forgotten."""


def fit(
    messages: Messages, encode: Callable[[Messages], list[int]], room: int | None
) -> tuple[Messages, list[int]]:
    """Return the messages that are left, and their ids: all of them, if ``room`` tokens are enough.

    Otherwise the oldest turns are left out, until half of the room is free or the newest turn alone is left: what is
    kept moves to other positions and has to be run again, so that has to happen seldom. A turn begins with a user's
    message, since templates want user and assistant in turn.
    """
    ids = encode(messages)
    if room is None or len(ids) <= room:
        return messages, ids
    first = next(
        (i for i, message in enumerate(messages) if message.get("role") not in LEADING), len(messages)
    )
    starts = [i for i, message in enumerate(messages) if i > first and message.get("role") == "user"]
    known: dict[int, list[int]] = {}

    def left(start: int) -> list[int]:
        if start not in known:
            known[start] = encode(messages[:first] + messages[start:])
        return known[start]

    if not starts:
        return messages, ids
    # The more turns are left out, the fewer tokens there are.
    index = bisect_left(starts, True, key=lambda start: len(left(start)) <= room // 2)
    start = starts[min(index, len(starts) - 1)]
    return messages[:first] + messages[start:], left(start)
