"""Reasoning is parted from what is said, however an answer is cut into pieces."""

from __future__ import annotations

import pytest

from edgeloop.runtime.text.reasoning import ReasoningStream
from edgeloop.runtime.text.template import ChatTemplates

TEXTS: dict[str, tuple[str, bool, str | None, str]] = {
    "both": (
        "<think>\nTwo and\n two.\n</think>\n\nFour, of course.\n",
        False,
        "Two and\n two.",
        "Four, of course.\n",
    ),
    "opened by the template": ("Two.\n</think>\n\n Four.", True, "Two.", "Four."),
    "nothing thought": ("<think>\n\n</think>\n\nFour.", False, "", "Four."),
    "never closed": ("<think>Two and </thin two", False, "Two and </thin two", ""),
    "never closed, opened": (" Two and ", True, "Two and", ""),
    "no reasoning": (" <thinker> is a word\n", False, None, " <thinker> is a word\n"),
    "a tag that is text": ("It is <think>no</think>.", False, None, "It is <think>no</think>."),
    "space first": ("\n <think>a</think>b", False, "a", "b"),
    "a tag after the answer": ("<think>a</think>b </think> <think>c", False, "a", "b </think> <think>c"),
    "half a tag": ("<thi", False, None, "<thi"),
    "tags like it": ("<think>a < b </ c </t</think>d", False, "a < b </ c </t", "d"),
    "nothing": ("", False, None, ""),
}


@pytest.mark.parametrize("name", TEXTS)
def test_parts(name: str) -> None:
    text, opened, reasoning, answer = TEXTS[name]
    for size in (1, 2, 3, 5, 1000):
        stream = ReasoningStream(opened)
        pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        given = [piece for i, part in enumerate(pieces) for piece in stream.push(part, i == len(pieces) - 1)]
        assert (stream.reasoning, stream.answer) == (reasoning, answer), size
        assert "".join(p.text for p in given if p.reasoning) == (reasoning or "")
        assert "".join(p.text for p in given if not p.reasoning) == answer
    wanted = {"role": "assistant", "content": answer}
    assert stream.message == (wanted if reasoning is None else {**wanted, "reasoning_content": reasoning})


def test_what_is_said_is_not_held_back() -> None:
    """A person reads along."""
    stream = ReasoningStream()
    seen = [
        [p.text for p in stream.push(c)]
        for c in ("<think>", "hm", " well", " <", "b", "</think>", "Yes", ".")
    ]
    assert seen == [[], ["hm"], [" well"], [], [" <b"], [], ["Yes"], ["."]]


@pytest.mark.parametrize(
    ("end", "opens"), [("<|im_start|>assistant\n", False), ("assistant\n<think>\n", True)]
)
def test_a_template_that_opens_it(end: str, opens: bool) -> None:
    templates = ChatTemplates({"default": "{% if add_generation_prompt %}" + end + "{% endif %}"})
    try:
        assert templates.opens_reasoning() is opens
    finally:
        templates.close()
