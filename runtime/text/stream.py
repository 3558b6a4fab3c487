"""Detokenization of a stream: text that grows token by token, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .pieces import Pieces

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""


class Detokenizer:
    """The text of an answer, one token at a time: together, what follows the prompt's text in that of both.

    A token's text depends on its neighbours: characters are split over tokens, and many decoders drop the space
    of a text's first word. So a stream begins with the prompt's last tokens, the last few tokens are decoded
    together each time, and what is new is the difference. The window is bounded: a token costs the same however
    long the text is.

    What is new begins where prompt + answer stop to be the prompt's own text: where the prompt ends in half a
    character, and the answer has the other half, that is the whole character.

    Decoders that fall back to bytes (``<0x0A>``) write a run of them as text only if all of it is, else each byte as
    U+FFFD. A run is held back until it ends, or is broken; only one of more than ``RUN`` bytes is believed, and what
    of it was shown remains if it turns out to be broken later.

    ``tokenizers.decoders.DecodeStream`` is not used: it fails ("invalid prefix") where bytes turn out to be broken,
    keeps silent for ever after some that are, and has nothing that says what is still held back at the end.
    """

    KEEP, WINDOW, RUN = 6, 24, 128
    """Tokens of context that stay; tokens after which the window moves; bytes that are held back."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], pieces: Pieces, prompt: Sequence[int] = ()
    ) -> None:
        """``prompt``: the tokens before the first that is pushed."""
        self._decode, self._pieces = decode, pieces
        self._ids: list[int] = []  # the window
        self._text = ""  # its text, the end held back included
        self._sent = 0  # characters of it that were returned
        self._run: list[int] = []  # tokens that are bytes and are held back; not in the window
        self._data = bytearray()  # and their bytes
        self._long = self._broken = False  # was some of the open run shown as text; as broken bytes?
        self._known = ""  # the prompt's end that may come out otherwise, but need not
        self._begin(prompt)

    def push(self, token: int) -> str:
        """Return the text that the next ``token`` completes; '' while it is half a character."""
        if self._pieces.silent(token):
            return ""
        byte = self._pieces.byte(token)
        if byte is None:
            new = self._release(token)
            self._long = self._broken = False
            return new
        if self._broken:
            return self._new(INCOMPLETE)
        self._run.append(token)
        self._data.append(byte)
        whole = _whole(self._data)
        if whole is None:
            self._broken = True
            return self._release()
        if not self._long and len(self._run) <= self.RUN:
            return ""
        self._long = True
        part, self._run = self._run[:whole], self._run[whole:]
        del self._data[:whole]
        return self._grow(part)

    def flush(self) -> str:
        """Return what is still held back, broken bytes as U+FFFD. Nothing comes after it."""
        return self._release() + self._send(len(self._text))

    def _begin(self, prompt: Sequence[int]) -> None:
        """Start the window with the last tokens of ``prompt``, whose text counts as returned."""
        ids: list[int] = []
        run: list[int] = []
        for token in reversed(prompt):
            if self._pieces.silent(token):
                continue
            if not ids and self._pieces.byte(token) is not None:
                run.append(token)
                continue
            ids.insert(0, token)
            if len(ids) >= self.KEEP and self._decode(ids):
                break
        run.reverse()
        data = bytes(self._pieces.byte(token) or 0 for token in run)
        whole = _whole(data)
        if whole is None:
            self._broken = True
            ids += run[-self.KEEP :]
        elif len(run) > self.RUN:
            self._long = True
            start = whole - self.KEEP
            while data[start] & 0xC0 == 0x80:  # not at the beginning of a character
                start -= 1
            ids += run[start:whole]
            self._run = run[whole:]
        else:
            self._run = run
        self._data += data[len(data) - len(self._run) :]
        if ids:
            self._grow(ids)
        self._known = self._text[self._sent :]
        if self._run:
            after = INCOMPLETE * len(self._run) if self._long else self._decode([*ids, *self._run])
            self._known = after if self._long else after[self._sent :]

    def _release(self, *then: int) -> str:
        """Return what is held back of a run of bytes, followed by the tokens ``then``."""
        held, self._run = self._run, []
        self._data.clear()
        if not self._long:
            return self._grow([*held, *then])
        # The rest of a run whose beginning was shown: beside that, its bytes would take it along.
        return self._new(INCOMPLETE * len(held)) + self._grow(then)

    def _grow(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        self._ids += ids
        self._text = self._decode(self._ids)
        # Only the last character can be half of one.
        new = self._send(len(self._text) - self._text.endswith(INCOMPLETE))
        if len(self._ids) > self.WINDOW:
            self._move()
        return new

    def _send(self, end: int) -> str:
        new = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return self._new(new)

    def _new(self, text: str) -> str:
        """Return ``text`` without what the prompt's own text has already."""
        if not self._known or not text:
            return text
        same = 0
        while same < min(len(text), len(self._known)) and text[same] == self._known[same]:
            same += 1
        self._known = self._known[same:] if same == len(text) else ""
        return text[same:]

    def _move(self) -> None:
        """Drop old tokens from the window, at a place where the text of the others does not change."""
        unsent = len(self._text) - self._sent
        for start in range(len(self._ids) - self.KEEP, 0, -1):
            text = self._decode(self._ids[start:])
            if len(text) > unsent and self._text.endswith(text):
                ids = self._ids[start:]
                break
        else:  # broken bytes, or tokens that write nothing; the first one stays as what comes before a text
            ids = self._ids[:1] + self._ids[-self.KEEP :]
            text = self._decode(ids)
        self._ids, self._text = ids, text
        self._sent = max(len(text) - unsent, 0)


def _whole(data: bytes | bytearray) -> int | None:
    """Return how many bytes of ``data`` are whole characters, where the rest may become one; None for broken bytes."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start if error.reason == "unexpected end of data" else None
    return len(data)
