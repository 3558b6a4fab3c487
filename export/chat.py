"""The chat template that a checkpoint folder carries, as text; rendering it is the runtime's work."""

from __future__ import annotations

import json
from pathlib import Path

from ..runtime.errors import CheckpointError


def chat_template(folder: Path) -> str | None:
    """chat_template.jinja, or the (default) template of tokenizer_config.json, or None."""
    own = folder / "chat_template.jinja"
    try:
        if own.is_file():
            return own.read_text(encoding="utf-8")
        config = folder / "tokenizer_config.json"
        template = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: the chat template cannot be read: {error}") from error
    if isinstance(template, list):
        named = {
            t["name"]: t["template"]
            for t in template
            if isinstance(t, dict) and {"name", "template"} <= t.keys()
        }
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder}: tokenizer_config.json has a chat_template that is not text")
    return template
