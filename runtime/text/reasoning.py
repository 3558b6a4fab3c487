"""Reasoning apart from the answer: a model that thinks first writes <think> … </think> before what it says.

The tags are those of Ouro Thinking, Qwen 3 and DeepSeek R1. A template may open the reasoning itself, at the end of a
prompt; a tag later in an answer is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Piece:
    """A piece of ``text``: of the reasoning, or of what is said."""

    text: str
    reasoning: bool


class ReasoningStream:
    """Parts the text of an answer as it comes, token by token; space around the tags belongs to neither part."""

    def __init__(self, opened: bool = False) -> None:
        """``opened``: the prompt ends within reasoning already."""
        self._held = ""
        self._state = "reasoning" if opened else "before"
        # Nothing of the current part was given out yet: space at its beginning is left out.
        self._fresh = True
        self.reasoning: str | None = "" if opened else None
        """What was thought so far; None: there was no reasoning."""
        self.answer = ""
        """What was said so far."""

    def push(self, text: str, last: bool = False) -> list[Piece]:
        """Return what ``text`` completes; nothing comes after the ``last`` one."""
        self._held += text
        found: list[Piece] = []
        if self._state == "before":
            begun = self._held.lstrip()
            if begun.startswith(OPEN):
                self._held, self._state, self.reasoning = begun[len(OPEN) :], "reasoning", ""
            elif last or not OPEN.startswith(begun):
                self._state, self._fresh = "answer", False  # an answer without reasoning stays as it is
        if self._state == "reasoning":
            thought, closed, rest = self._held.partition(CLOSE)
            if closed:
                self._give(found, thought.rstrip(), True)
                self._held, self._state, self._fresh = rest, "answer", True
            else:  # spaces before a tag that closes are not the reasoning's, and a part of it may be here
                kept = thought if last else thought[: len(thought) - _possible(thought)].rstrip()
                self._held = thought[len(kept) :]
                self._give(found, kept.rstrip() if last else kept, True)
        if self._state == "answer":
            text, self._held = (self._held.lstrip() if self._fresh else self._held), ""
            self._give(found, text, False)
        return found

    def _give(self, found: list[Piece], text: str, reasoning: bool) -> None:
        text = text.lstrip() if self._fresh else text
        if not text:
            return
        self._fresh = False
        if reasoning:
            self.reasoning = (self.reasoning or "") + text
        else:
            self.answer += text
        found.append(Piece(text, reasoning))

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message: its reasoning is kept beside the content, where a template finds it that wants
        it, and is not said again by one that does not."""
        beside = {} if self.reasoning is None else {"reasoning_content": self.reasoning}
        return {"role": "assistant", "content": self.answer, **beside}


def _possible(text: str) -> int:
    """Return how many of the last characters of ``text`` may be the beginning of a tag that closes."""
    return next((n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if CLOSE.startswith(text[-n:])), 0)
