"""Text that grows token by token, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""


class Detokenizer:
    """Text that grows by one token at a time: the pushes together are the decoded whole.

    A token's text depends on its neighbours: characters are split over tokens, and SentencePiece writes a
    token's leading space only when something is before it. So the last few tokens are decoded together each
    time, and what is new is the difference. The window is bounded: a token costs the same however long
    the text is.
    """

    KEEP, WINDOW, HELD = 6, 24, 4
    """Tokens of context that stay; tokens after which the window moves; pushes that a character may need."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []  # the window
        self._text = ""  # its text, the end held back included
        self._sent = 0  # characters of it that were returned
        self._held = 0  # pushes in a row that ended in half a character

    def push(self, token: int) -> str:
        """The text that the next ``token`` completes; '' while it is half a character."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        self._held = self._held + 1 if self._text.endswith(INCOMPLETE) else 0
        if not self._held:
            new = self._send(len(self._text))
        elif self._held < self.HELD:
            return ""  # and the window stays: where to cut it is only known once the character is whole
        else:
            # No character takes this many tokens, so these bytes are really broken; only the end may not be.
            new = self._send(len(self._text) - 1)
        if len(self._ids) > self.WINDOW:
            self._move()
        return new

    def flush(self) -> str:
        """What is still held back, broken bytes as U+FFFD. The stream is then empty and can be used again."""
        new = self._send(len(self._text))
        self._ids, self._text, self._sent, self._held = [], "", 0, 0
        return new

    def _send(self, end: int) -> str:
        new = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _move(self) -> None:
        """Drop old tokens from the window, at a place where no character is cut in two."""
        unsent = len(self._text) - self._sent
        for start in range(len(self._ids) - self.KEEP, 0, -1):
            if not self._decode(self._ids[:start]).endswith(INCOMPLETE):
                break
        else:  # nothing but broken bytes: any cut will do, and the window must not grow
            start = len(self._ids) - self.KEEP
        self._ids = self._ids[start:]
        self._text = self._decode(self._ids)
        self._sent = len(self._text) - unsent
