"""Text to token ids and back, and text that streams without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""


class Tokenizer:
    """A tokenizer.json."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @staticmethod
    def open(path: str | Path) -> Tokenizer:
        """Load ``path``; BundleError when it is missing or cannot be read."""
        from tokenizers import Tokenizer as Engine

        try:
            return Tokenizer(Engine.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path}: {error}; copy the bundle again or export it again") from error

    @property
    def vocab_size(self) -> int:
        """Ids, added tokens included."""
        return self._engine.get_vocab_size()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of ``text``; with ``special``, what the tokenizer puts around a text (often BOS) too."""
        return self._engine.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ``ids``; special tokens give no text unless ``special``."""
        return self._engine.decode(list(ids), skip_special_tokens=not special)

    def written(self, token: int | None) -> str:
        """The token as it is written in the vocabulary; '' for None or an unknown id."""
        return ("" if token is None else self._engine.id_to_token(token)) or ""

    def detokenizer(self) -> Detokenizer:
        """A new stream of text."""
        return Detokenizer(self.decode)


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


class StopMatcher:
    """Cuts a stream of text at the first stop string, holding back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """UsageError for an empty stop string."""
        if isinstance(stops, str):
            stops = (stops,)
        if "" in stops:
            raise UsageError("a stop string is empty; leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to come before any stop string; '' after a match."""
        if self.matched:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.matched = True
            return self._take(min(found), drop=True)
        return self._take(len(self._held) - self._possible())

    def flush(self) -> str:
        """What was held back: at the end of the text it is no stop string."""
        return self._take(len(self._held))

    def _possible(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        starts = (stop[:n] for stop in self._stops for n in range(len(stop)))
        return max((len(start) for start in starts if self._held.endswith(start)), default=0)

    def _take(self, count: int, drop: bool = False) -> str:
        text, self._held = self._held[:count], "" if drop else self._held[count:]
        return text
