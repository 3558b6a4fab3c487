"""The strings of a section, each once."""

from __future__ import annotations


class Strings:
    """Bytes that rules point at."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[bytes, tuple[int, int]] = {b"": (0, 0)}

    def __call__(self, text: str | bytes) -> tuple[int, int]:
        """Where ``text`` lies, and its bytes."""
        data = text.encode() if isinstance(text, str) else text
        if data not in self._known:
            self._known[data] = (len(self.data), len(data))
            self.data += data
        return self._known[data]
