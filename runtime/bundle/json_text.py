"""JSON that people read, too: what fits into a line is on one, so that an op of a program is."""

from __future__ import annotations

from typing import Any

import msgspec

WIDTH = 200
"""An attention with a window and a cap is nearly as long."""


def json_text(value: object) -> bytes:
    """Return ``value``, made of structs or plain types, as UTF-8."""
    return _text(msgspec.json.decode(msgspec.json.encode(value)), "").encode()


def _text(value: Any, indent: str) -> str:
    if not isinstance(value, dict | list) or not value:
        return msgspec.json.encode(value).decode()
    deeper, (start, end) = f"{indent} ", "{}" if isinstance(value, dict) else "[]"
    if isinstance(value, dict):
        parts = [f"{_text(key, '')}: {_text(item, deeper)}" for key, item in value.items()]
    else:
        parts = [_text(item, deeper) for item in value]
    line = ", ".join(parts)
    if len(deeper) + len(line) < WIDTH and "\n" not in line:
        return f"{start}{line}{end}"
    lines = f",\n{deeper}".join(parts)
    return f"{start}\n{deeper}{lines}\n{indent}{end}"
