"""The chat template that a checkpoint folder carries, as text; rendering it is the runtime's work."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import CheckpointError
from ..weight_files import read_json, read_text


def chat_template(folder: Path) -> str | None:
    """chat_template.jinja, or the (default) template of tokenizer_config.json, or None."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return read_text(own)
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several, by name
        default = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = default[0].get("template") if default else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{config} has a chat_template that is not text; correct or remove it")
    return template
