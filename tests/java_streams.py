"""What Java's DataOutputStream wrote: strings and whole numbers."""

from __future__ import annotations

import struct
from typing import BinaryIO


def text(source: BinaryIO) -> str | None:
    """Return the next string, or None at the end."""
    size = source.read(2)
    return source.read(struct.unpack(">H", size)[0]).decode() if size else None


def number(source: BinaryIO) -> int:
    """Return the next int."""
    return int(struct.unpack(">i", source.read(4))[0])
