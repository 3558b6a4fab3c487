"""Chat template → turns (``runtime/text/turns.py``), by trying it out; and whether they write what it writes.

The template is rendered on conversations of every order of roles, with marks as contents: what stands between two marks
is a turn's text, and what is missing around a mark was stripped. Where an order raises, or a content is written in
another way than its neighbours say, fewer orders are tried. Then conversations are made at random, and unless each of
them is written as the template writes it, there are no turns.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from ...runtime.errors import UsageError
from ...runtime.text.reasoning import CLOSE, OPEN
from ...runtime.text.template_process import TemplateProcess
from ...runtime.text.turns import (
    ANSWER,
    DATE,
    NOTHING,
    ROLES,
    Around,
    Content,
    Order,
    Strip,
    System,
    Table,
    Thought,
    Turns,
    Within,
)

Said = Sequence[Mapping[str, str]]
MADE = 240
"""Conversations that turns are tried on."""
LONGEST = 4
"""Messages of a probe: all that stands around a place, and around a message."""
PADS = "\n\n\u2003\n", "\n\u2002\n\n"
"""Before and behind a mark. Neither is what a template writes, and no end is like another once it is stripped."""
TOOLS = ("<tool_response>",)
"""Marks of contents that a template with them takes for something else than a message."""
WAYS: tuple[dict[str, bool], ...] = (
    {},
    {"enable_thinking": True, "thinking": True},
    {"enable_thinking": False, "thinking": False},
)
"""What templates hear of thinking: nothing, to think, and not to."""
KINDS = tuple(product((Order.ANY,), (System.ANYWHERE, System.FIRST, System.NOWHERE))) + tuple(
    product((Order.ALTERNATE,), (System.FIRST, System.NOWHERE))
)
CONTENTS = (
    "Which is the highest mountain?",
    "x",
    "  two spaces before, two behind  ",
    "\n\na line of its own\n",
    "\tumlauts äöüß, 漢字, हिन्दी, 👩‍👩‍👧 and \u00a0no-break\u00a0",
    "{{ messages }} {% if x %}{# no #}",
    "<b>&amp; \"quotes\" 'single' \\n \\\\",
    "<|im_start|>user\nfalse turn<|im_end|>",
    "[INST] no [/INST] </s><s>",
    "\u2028line and paragraph\u2029",
    "e\u0301 \u200bzero\u200b width",
    "many " * 40,
)
BLANKS = ("", " ", "\n \n")
THOUGHTS = (
    f"{OPEN}\nI wonder.\n{CLOSE}\n\nYes.",
    f"thought {CLOSE} then said ",
    f"{OPEN}{CLOSE}\n \nNo.\n",
)


class TurnsError(Exception):
    """Why turns cannot say what a template writes, in a few words."""


def compile_turns(template: str, special_tokens: Mapping[str, str]) -> Turns:
    """Return the turns of ``template``, which sees ``special_tokens``; TurnsError where they would not write what it
    does."""
    process = TemplateProcess()
    try:
        return _compile(_Probe(template, special_tokens, process))
    finally:
        process.close()


class _Probe:
    """A template, and what it sees."""

    def __init__(self, template: str, special_tokens: Mapping[str, str], process: TemplateProcess) -> None:
        self.source, self._special, self._process = template, dict(special_tokens), process
        # A date is a mark, too: the same text on another day.
        self._marked = re.sub(
            r"strftime_now\(\s*(['\"])([^'\"]*)\1\s*\)", rf"\g<1>{DATE}\g<2>{DATE}\g<1>", template
        )
        dates = re.findall(f"{DATE}([^{DATE}]*){DATE}", self._marked)
        plain = all(re.fullmatch(r"(%[aAbBdHIjmMpSyYZ]|[^%])*", date) for date in dates)
        if not plain or re.search(r"strftime_now\s*\(", self._marked):
            raise TurnsError("it asks for the time in a way of its own")

    def render(self, said: Said, generate: bool, way: int, *, marked: bool = False) -> str:
        """Return its text; UsageError where it refuses."""
        values: dict[str, Any] = {**self._special, "messages": list(said), "tools": None, "documents": None}
        values |= {"add_generation_prompt": generate, **WAYS[way]}
        return self._process.render(self._marked if marked else self.source, values)


def _compile(probe: _Probe) -> Turns:
    ways = len(WAYS) if re.search(r"\b(enable_)?thinking\b", probe.source) else 1
    refused = tuple(mark for mark in TOOLS if mark in probe.source)
    why = "it refuses every order of messages"
    for (order, system), late in product(KINDS, (False, True)):
        if late and system != System.FIRST:
            continue
        turns = Turns(order, system, late, True, refused)
        try:
            tables = tuple(_table(probe, turns, way) for way in range(ways))
            tables = tables[:1] if all(table == tables[0] for table in tables) else tables
            return verified(probe, replace(turns, tables=tables))
        except (TurnsError, UsageError) as error:
            why = str(error)
    raise TurnsError(why)


def _orders(turns: Turns, longest: int = LONGEST) -> Iterator[tuple[int, ...]]:
    """Yield the roles of the conversations that ``turns`` take."""
    if turns.order == Order.ALTERNATE:
        plain = [tuple(2 + i % 2 for i in range(count)) for count in range(1, longest + 2)]
    else:
        roles = (1, 2, 3) if turns.system == System.ANYWHERE else (2, 3)
        plain = [roles_ for count in range(1, longest + 1) for roles_ in product(roles, repeat=count)]
    for each in plain:
        if any(who != 1 for who in each):
            yield each
        if turns.system == System.FIRST:
            yield (1, *each)


def _moved(turns: Turns, order: Sequence[int]) -> list[int]:
    """Return which message of ``order`` is written where."""
    numbers = list(range(len(order)))
    if turns.late and order[0] == 1:
        last = max((i for i, who in enumerate(order) if who == 2), default=1)
        numbers = [*numbers[1:last], 0, *numbers[last:]]
    return numbers


def _table(probe: _Probe, turns: Turns, way: int) -> Table:
    between: dict[Around, str] = {}
    contents: dict[Within, Content] = {}
    for order, generate in product(_orders(turns), (False, True)):
        numbers = _moved(turns, order)
        end = ANSWER if generate else NOTHING
        roles = [NOTHING, NOTHING, *(order[i] for i in numbers), end, NOTHING]

        def rendered(left: str, right: str) -> list[str]:
            marks = [f"{left}m{i}k{right}" for i in range(len(order))]  # noqa: B023 - used at once
            said = [{"role": ROLES[who - 1], "content": m} for who, m in zip(order, marks, strict=True)]  # noqa: B023
            return _split(probe.render(said, generate, way, marked=True), numbers)  # noqa: B023

        plain, padded = rendered("", ""), rendered(*PADS)
        for i, text in enumerate(plain):
            around = (roles[i], roles[i + 1], roles[i + 2], (*roles, NOTHING)[i + 3])
            if between.setdefault(around, text) != text:
                raise TurnsError("what stands between two messages depends on more than the roles around it")
        strips = _strips(plain, padded)
        for i, (left, right) in enumerate(strips):
            within = (roles[i + 1], roles[i + 2], roles[i + 3])
            said = Content(left, right)
            if within[1] == 3 and CLOSE in probe.source:
                said = _thought(probe, said, order, numbers, i, plain, (generate, way))
            if contents.setdefault(within, said) != said:
                raise TurnsError("what becomes of a message depends on more than the roles around it")
    return Table(between, contents)


def _split(text: str, numbers: Sequence[int]) -> list[str]:
    """Return what stands before, between and behind the marks of messages ``numbers`` in ``text``."""
    parts: list[str] = []
    for i in numbers:
        before, mark, text = text.partition(f"m{i}k")
        if not mark:
            raise TurnsError("it leaves messages out, or writes them in another order")
        parts.append(before)
    if re.search(r"m\dk", "".join(parts) + text):
        raise TurnsError("it writes a message twice")
    return [*parts, text]


def _strips(plain: Sequence[str], padded: Sequence[str]) -> list[tuple[Strip, Strip]]:
    """Return what was taken off both ends of each content, of texts between marks and marks with pads."""
    lefts = dict(zip(Strip, (PADS[0], "", PADS[0].lstrip("\n")), strict=True))
    rights = dict(zip(Strip, (PADS[1], "", PADS[1].rstrip("\n")), strict=True))
    before = [Strip.NOTHING]  # of the message before, its right end: none yet
    left: list[Strip] = []
    right: list[Strip] = []
    for i, (text, wider) in enumerate(zip(plain, padded, strict=True)):
        found = [
            (r, l)
            for r in (before if i == 0 else Strip)
            for l in (before if i == len(plain) - 1 else Strip)  # noqa: E741
            if (rights[r] if i else "") + text + (lefts[l] if i < len(plain) - 1 else "") == wider
        ]
        if len(found) != 1:
            raise TurnsError("it rewrites what is in a message")
        right.append(found[0][0])
        left.append(found[0][1])
    return [(left[i], right[i + 1]) for i in range(len(plain) - 1)]


def _thought(
    probe: _Probe,
    found: Content,
    order: Sequence[int],
    numbers: Sequence[int],
    i: int,
    plain: Sequence[str],
    how: tuple[bool, int],
) -> Content:
    """Return ``found`` of the message that is written as number ``i``, with what becomes of one with a thought."""
    pad = PADS[0]
    held = [f"m{n}k" for n in range(len(order))]
    held[numbers[i]] = f"{OPEN}w{CLOSE}{pad}{held[numbers[i]]}"
    said = [{"role": ROLES[who - 1], "content": text} for who, text in zip(order, held, strict=True)]
    text = probe.render(said, *how, marked=True)
    marks = [f"m{n}k" for n in numbers]

    def written(content: str) -> str:
        between = [*zip(plain, [*marks[:i], content, *marks[i + 1 :]], strict=False)]
        return "".join(a + b for a, b in between) + plain[-1]

    mark = marks[i]
    if text == written(f"{OPEN}w{CLOSE}{pad}{mark}"):
        return found._replace(thought=Thought.KEPT)
    for strip, left in zip(Strip, (pad, "", pad.lstrip("\n")), strict=True):
        if text == written(left + mark):
            # What is stripped anyway need not be stripped before.
            cut = Strip.NOTHING if strip == found.left else strip
            return found._replace(thought=Thought.CUT, cut=cut)
    return found._replace(thought=Thought.REFUSED)


def verified(probe: _Probe, turns: Turns) -> Turns:
    """Return ``turns``, without contents of nothing but space where those are written otherwise; TurnsError where
    conversations are."""
    blank = all(same(probe, turns, *each) for each in conversations(turns, random.Random(2), blanks=True))
    turns = replace(turns, blank=blank)
    for each in conversations(turns, random.Random(1)):
        if not same(probe, turns, *each):
            raise TurnsError("it writes some conversations in a way that turns cannot say")
    return turns


def same(probe: _Probe, turns: Turns, said: Said, generate: bool, table: int) -> bool:
    """Return whether template and turns write a conversation alike, or both refuse it."""
    try:
        written = turns.render(said, generate=generate, table=table)
    except UsageError:
        return True  # never another text
    try:
        return probe.render(said, generate, table) == written
    except UsageError:
        return False


def conversations(
    turns: Turns, chance: random.Random, count: int = MADE, *, blanks: bool = False
) -> Iterator[tuple[list[dict[str, str]], bool, int]]:
    """Yield ``count`` conversations that ``turns`` take: messages, whether an answer is asked for, and the table."""
    for number in range(count):
        length = chance.choice((1, 1, 2, 3, 4, 5, 7, 11))
        if turns.order == Order.ALTERNATE:
            order = [2 + i % 2 for i in range(length)]
        else:
            roles = (1, 2, 3) if turns.system == System.ANYWHERE else (2, 3)
            order = [chance.choice(roles) for _ in range(length)]
            order[-1] = max(order[-1], 2)
        if turns.system != System.NOWHERE and chance.random() < 0.5:
            order = [1, *order]
        said = []
        for who in order:
            known = CONTENTS + (THOUGHTS if who == 3 and chance.random() < 0.3 else ())
            content = chance.choice(known)
            if chance.random() < 0.3:
                content += chance.choice(known)
            if blanks and chance.random() < 0.4:
                content = chance.choice(BLANKS)
            said.append({"role": ROLES[who - 1], "content": content})
        yield said, chance.random() < 0.6, number % len(turns.tables)
