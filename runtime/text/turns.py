"""A chat template as turns: the texts that stand between the contents of a conversation, and what becomes of those.

A template is a program, and a host in an app runs none. What most of them do is less: what stands between two messages
depends on the roles around it, and contents are stripped, or not. Such turns are data, which the lane engine's file
carries (``engines/native/records.py``); ``export/text/compile_turns.py`` finds them by trying the template out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from ..errors import UsageError
from .reasoning import CLOSE

ROLES = ("system", "user", "assistant")
NOTHING, ANSWER = 0, 4
"""Beside the roles, 1 to 3, in keys: before the first message and behind the last one; and behind it, where the opening
of the assistant's turn is wanted."""
DATE = "\0"
"""Around what strftime makes the date of in a text."""
Around = tuple[int, int, int, int]
"""Two messages' roles before a place, and two behind it."""
Within = tuple[int, int, int]
"""The roles of the message before, of the message itself, and of that behind it."""


class Strip(IntEnum):
    """What is taken off an end of a content."""

    NOTHING = 0
    SPACE = 1
    NEWLINES = 2


class Thought(IntEnum):
    """What becomes of a content that has ``</think>`` in it."""

    KEPT = 0
    CUT = 1
    REFUSED = 2


class Content(NamedTuple):
    """What becomes of a message's content. ``cut``: what is taken off the beginning of what follows a thought."""

    left: Strip = Strip.NOTHING
    right: Strip = Strip.NOTHING
    thought: Thought = Thought.KEPT
    cut: Strip = Strip.NOTHING


class Order(IntEnum):
    """Which conversations there are."""

    ANY = 1
    ALTERNATE = 2


class System(IntEnum):
    """Where a system message may stand."""

    NOWHERE = 0
    FIRST = 1
    ANYWHERE = 2


@dataclass(frozen=True)
class Table:
    """What one way to ask for an answer writes."""

    between: Mapping[Around, str]
    contents: Mapping[Within, Content]


@dataclass(frozen=True)
class Turns:
    """A chat template as data.

    ``tables``: one, or three: as the template does by itself, where the model is to think, and where it is not.
    ``late``: a system message is written before the last user's. ``blank``: contents of nothing but space are taken.
    ``refused``: what no content may hold.
    """

    order: Order
    system: System
    late: bool
    blank: bool
    refused: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(default=())

    def render(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True, table: int = 0) -> str:
        """Return the text of ``messages``; UsageError for those that the template refuses, or turns cannot say."""
        said = [(role(message["role"]), message["content"]) for message in messages]
        self.check(said)
        if self.late and said[0][0] == 1:
            last = max((i for i, (who, _) in enumerate(said) if who == 2), default=1)
            said = [*said[1:last], said[0], *said[last:]]
        roles = [NOTHING, NOTHING, *(who for who, _ in said), ANSWER if generate else NOTHING, NOTHING]
        used, text = self.tables[table], ""
        for i, (_, content) in enumerate(said):
            text += self._place(used, roles, i) + self._content(used, roles, i, content)
        return text + self._place(used, roles, len(said))

    def check(self, said: Sequence[tuple[int, str]]) -> None:
        """Raise UsageError for a conversation in another order than the template takes, or with a content that it
        treats in a way of its own."""
        if not said:
            raise UsageError("the conversation is empty; give at least one message")
        for i, (who, content) in enumerate(said):
            if who == 1 and self.system == System.NOWHERE:
                raise UsageError("this template takes no system message")
            if who == 1 and i and self.system == System.FIRST:
                raise UsageError("this template takes a system message in front only")
            if not self.blank and not content.strip():
                raise UsageError("this template takes no message without words")
            if any(mark in content for mark in self.refused):
                raise UsageError("this template rewrites what is in a message; use its own host")
        rest = [who for who, _ in said if who != 1]
        if not rest:
            raise UsageError("the conversation has no message but the system's")
        if self.order == Order.ALTERNATE and any(who != 2 + i % 2 for i, who in enumerate(rest)):
            raise UsageError("this template alternates user and assistant, and the user begins")

    def _place(self, table: Table, roles: Sequence[int], i: int) -> str:
        around = (roles[i], roles[i + 1], roles[i + 2], roles[i + 3] if i + 3 < len(roles) else NOTHING)
        if around not in table.between:
            raise UsageError("this template does not say what stands between such messages")
        return dated(table.between[around])

    def _content(self, table: Table, roles: Sequence[int], i: int, content: str) -> str:
        rule = table.contents.get((roles[i + 1], roles[i + 2], roles[i + 3]), Content())
        if CLOSE in content and rule.thought == Thought.REFUSED:
            raise UsageError("this template rewrites what was thought; leave it out of the message")
        if CLOSE in content and rule.thought == Thought.CUT:
            content = _lstrip(content.rpartition(CLOSE)[2], rule.cut)
        content = _lstrip(content, rule.left)
        return {Strip.SPACE: content.rstrip(), Strip.NEWLINES: content.rstrip("\n")}.get(rule.right, content)


def role(name: str) -> int:
    """Return the number of a role, 1 to 3; UsageError for others."""
    if name not in ROLES:
        raise UsageError(f"role {name[:40]!r}, wanted one of {', '.join(ROLES)}")
    return ROLES.index(name) + 1


def dated(text: str) -> str:
    """Return ``text`` with its dates written out."""
    if DATE not in text:
        return text
    return re.sub(f"{DATE}([^{DATE}]*){DATE}", lambda found: datetime.now().strftime(found[1]), text)


def _lstrip(text: str, strip: Strip) -> str:
    return {Strip.SPACE: text.lstrip(), Strip.NEWLINES: text.lstrip("\n")}.get(strip, text)
