"""Chat templates: they make the text of a conversation that transformers' ``apply_chat_template`` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from .reasoning import OPEN
from .template_process import Limits, TemplateProcess

DEFAULT, TOOL_USE = "default", "tool_use"
"""The template that is used, and the one that is used where there are tools, unless another is named."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message may have its reasoning; templates read the first one, some the second."""

Objects = Sequence[Mapping[str, Any]]
"""Messages, tools, documents: JSON objects."""


class ChatTemplates:
    """The chat templates of a bundle. Templates are untrusted: they run in a bounded process (template_process.py)."""

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``templates``: sources by name. ``special_tokens``: what they see as ``bos_token``, ``eos_token`` …"""
        self.templates = dict(templates)
        self.special_tokens = dict(special_tokens or {})
        self._process = TemplateProcess(limits)

    def render(
        self,
        messages: Objects,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
        generate: bool = True,
    ) -> str:
        """Return the text of ``messages`` ({"role": …, "content": …}).

        ``tools`` (JSON schemas of functions) and ``documents`` ({"title": …, "text": …}) are None for the
        template unless given. ``template``: the name of one; without, the default one, or ``tool_use`` where
        there are tools. ``generate`` adds the opening of the assistant's turn. UsageError, in one line,
        when there is no such template, and when it is wrong, refuses the messages or takes more than its
        limits.
        """
        name = self.choose(template, with_tools=tools is not None)
        turns = [_turn(message) for message in checked("messages", messages)]
        if not turns:
            raise UsageError("the conversation is empty; give at least one message")
        values = {
            **self.special_tokens,  # first: a token may have the name of one of the others
            "messages": turns,
            "tools": None if tools is None else checked("tools", tools),
            "documents": None if documents is None else checked("documents", documents),
            "add_generation_prompt": generate,
        }
        return self._process.render(self.templates[name], values)

    def opens_reasoning(
        self,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
    ) -> bool:
        """Return whether the opening of the assistant's turn opens its reasoning too; the rest as in ``render``."""
        turn = [{"role": "user", "content": "?"}]
        text = self.render(turn, tools=tools, documents=documents, template=template)
        return text.rstrip().endswith(OPEN)

    def choose(self, name: str | None = None, *, with_tools: bool = False) -> str:
        """Return the name of the template to use; UsageError when there is none."""
        if name is None:
            name = TOOL_USE if with_tools and TOOL_USE in self.templates else DEFAULT
            if name not in self.templates and self.templates:
                raise UsageError(f"no chat template is the default; choose one by name: {self.names}")
        if name not in self.templates:
            raise UsageError(f"there is no chat template {name!r}, wanted one of: {self.names or 'none'}")
        return name

    @property
    def names(self) -> str:
        """The names of the templates, for messages."""
        return ", ".join(sorted(self.templates))

    def close(self) -> None:
        """End the process, if there is one. Closing twice is fine."""
        self._process.close()


def checked(what: str, values: Any) -> list[dict[str, Any]]:
    """Return ``values`` as a list of JSON objects; UsageError when they are something else."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise UsageError(f"{what} are of type {type(values).__name__}, wanted a list of JSON objects")
    for number, value in enumerate(values, 1):
        if not isinstance(value, Mapping):
            raise UsageError(
                f"{what}: number {number} is of type {type(value).__name__}, wanted a JSON object"
            )
    try:
        return [_plain(value) for value in values]
    except TypeError as error:
        raise UsageError(f"{what} hold a {error}, wanted JSON values only") from error
    except RecursionError as error:
        raise UsageError(f"{what} are nested too deeply") from error


def _plain(value: Any) -> Any:
    """Return ``value`` in JSON's own types; TypeError names one that is none of them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"key of type {type(wrong[0]).__name__}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"value of type {type(value).__name__}")


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """Return ``message`` as templates expect it: without keys that are None, its reasoning under each key that they
    read."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
