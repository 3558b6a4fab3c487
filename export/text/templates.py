"""Finds the chat templates of a checkpoint folder, by name; the runtime renders them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError, UsageError
from ...runtime.text.template import DEFAULT, TOOL_USE, ChatTemplates
from ..checkpoint.weight_files import read_json, read_text

log = logging.getLogger(__name__)

MOST = 32
"""Templates of a folder; published ones have up to four."""

USER = {"role": "user", "content": "Which is the highest mountain?"}
TURNS = [USER, {"role": "assistant", "content": "Everest."}, {"role": "user", "content": "And after that?"}]
SYSTEM = {"role": "system", "content": "You answer in one word."}
TOOL = {
    "type": "function",
    "function": {
        "name": "height",
        "description": "The height of a mountain.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "description": "Which one."}},
            "required": ["name"],
        },
    },
}
SAMPLES: tuple[tuple[str, list[dict[str, str]]], ...] = (
    ("a user's turn", [USER]),
    ("a conversation of several turns", TURNS),
    ("a system message", [SYSTEM, *TURNS]),
)
"""The conversations that every template is tried on, and their names in warnings."""


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the Jinja sources by name, from the files in which transformers looks.

    ``chat_template.jinja`` is the default one, the files of ``additional_chat_templates/`` have the others' names.
    Where there is any of these, ``tokenizer_config.json`` is not read: a text there is the default one, a list has
    names.
    """
    own = folder / "chat_template.jinja"
    files = {DEFAULT: own} if own.is_file() else {}
    files |= {
        path.name.removesuffix(".jinja"): path
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if path.is_file()
    }
    if len(files) > MOST:
        raise CheckpointError(
            f"{folder} has {len(files)} chat templates, at most {MOST} are read; remove some"
        )
    if files:
        return {name: read_text(path) for name, path in files.items()}
    config = folder / "tokenizer_config.json"
    return _configured(read_json(config).get("chat_template"), config) if config.is_file() else {}


def _configured(value: Any, path: Path) -> dict[str, str]:
    """Return the templates of a ``chat_template`` entry: a text, or texts by name."""
    named = value
    if value is None:
        named = {}
    elif isinstance(value, str):
        named = {DEFAULT: value}
    elif isinstance(value, list):
        pairs = [(t.get("name"), t.get("template")) if isinstance(t, dict) else (None, t) for t in value]
        named = {name if isinstance(name, str) else None: template for name, template in pairs}
    if not isinstance(named, dict) or None in named:
        raise CheckpointError(
            f"{path} has a chat_template that is neither a text nor a list of texts with names; correct or remove it"
        )
    if len(named) > MOST:
        raise CheckpointError(f"{path} has {len(named)} chat templates, at most {MOST} are read; remove some")
    for name, template in named.items():
        if not isinstance(template, str) or not _is_text(name + template):
            raise CheckpointError(
                f"{path} has a chat_template {name[:40]!r} that is not text; correct or remove it"
            )
    return named


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can hold halves of surrogate pairs
        return False
    return True


def warn_of_templates(
    folder: Path,
    templates: Mapping[str, str],
    special_tokens: Mapping[str, str],
    added: Mapping[str, int] | None = None,
    ends: Collection[int] = (),
) -> None:
    """Render each template as a host will, and log a warning of what cannot be rendered and why; and of a token of
    ``added``, ids by text, that ends an answer in the default template, and is none of those at which a text
    ``ends``."""
    renderer = ChatTemplates(templates, special_tokens)
    try:
        if DEFAULT in templates:
            _warn_of_turn_end(folder, renderer, added or {}, ends)
        for name in templates:
            for what, messages in SAMPLES:
                try:
                    renderer.render(messages, template=name, tools=[TOOL] if name == TOOL_USE else None)
                except UsageError as error:
                    log.warning(
                        "%s: chat template %r cannot render %s: %s; the bundle runs without it",
                        folder,
                        name,
                        what,
                        str(error).rstrip("."),
                    )
                    break
    finally:
        renderer.close()


def _warn_of_turn_end(
    folder: Path, renderer: ChatTemplates, added: Mapping[str, int], ends: Collection[int]
) -> None:
    try:
        text = renderer.render(TURNS[:2], generate=False)
    except UsageError:
        return  # which is said elsewhere
    _, said, behind = text.rpartition(TURNS[1]["content"])
    end = max((token for token in added if said and behind.lstrip().startswith(token)), key=len, default=None)
    if end is not None and added[end] not in ends:
        log.warning(
            "%s: the chat template ends an answer with %r, token %d, and a text ends at %s: add it to eos_token_id in "
            "generation_config.json, or answers go on behind it",
            folder,
            end,
            added[end],
            ", ".join(map(str, sorted(ends))) or "no token at all",
        )
