"""Stop strings: they end the text of an answer.

The rules are those of transformers' ``stop_strings``: what counts is what the tokens write, special ones by their names
though a text leaves them out; generation ends with the first token that completes a stop string, wherever in the token
that is; and a stop string may begin in the prompt, but not end there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import UsageError
from ..wording import shown
from .pieces import Pieces
from .stream import Detokenizer

MAX_STOPS, MAX_LENGTH = 1000, 10_000
"""Stop strings of a request, and characters of one."""


def check_stops(stop: Sequence[str], pieces: Pieces | None) -> tuple[str, ...]:
    """Return the stop strings; ``stop`` may be one string. ``pieces``: None for a bundle without a tokenizer.

    UsageError for one that is empty, too long, no text, or that no sequence of tokens writes.
    """
    if not isinstance(stop, str | Sequence):
        raise UsageError(f"the stop strings are of type {type(stop).__name__}, wanted str or a list of them")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise UsageError(f"{len(stops)} stop strings, wanted at most {MAX_STOPS}")
    for one in stops:
        if not isinstance(one, str):
            raise UsageError(f"a stop string is of type {type(one).__name__}, wanted str")
        if not one:
            raise UsageError("a stop string is empty; leave it out")
        if len(one) > MAX_LENGTH:
            raise UsageError(
                f"the stop string {shown(one)} has {len(one)} characters, wanted at most {MAX_LENGTH}"
            )
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the stop string {shown(one)} is not text: character {error.start + 1} is half of a pair (a surrogate)"
            ) from error
        if pieces is None:
            raise UsageError(
                f"the bundle has no tokenizer, so the stop string {shown(one)} never comes; leave it out"
            )
        if not pieces.can_write(one):
            raise UsageError(
                f"the stop string {shown(one)} can never come: the tokenizer has no tokens that write it; leave it out"
            )
    return stops


class StopMatcher:
    """Finds stop strings in a stream of bytes, at the same cost for every byte (Knuth, Morris and Pratt)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._failure_table = [_failure_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self.longest = max(map(len, self._stops), default=0)
        """Bytes of the longest stop string."""
        self.begins = 0
        """How many bytes before the end of the stream a stop string begins, or what may become one; else 0."""

    def push(self, data: bytes) -> bool:
        """Read ``data``, and return whether a stop string ends in it; ``begins`` is then where the earliest begins."""
        first: int | None = None
        for n, (stop, failures) in enumerate(zip(self._stops, self._failure_table, strict=True)):
            state = self._states[n]
            for at, byte in enumerate(data):
                while state and byte != stop[state]:
                    state = failures[state - 1]
                state += byte == stop[state]
                if state == len(stop):
                    begins = state + len(data) - at - 1
                    first = begins if first is None else max(first, begins)
                    state = failures[state - 1]
            self._states[n] = state
        self.begins = max(self._states, default=0) if first is None else first
        return first is not None


def _failure_table(stop: bytes) -> list[int]:
    """Return for every prefix of ``stop`` the length of the longest shorter prefix that it ends with."""
    failures, state = [0] * len(stop), 0
    for at in range(1, len(stop)):
        while state and stop[at] != stop[state]:
            state = failures[state - 1]
        state += stop[at] == stop[state]
        failures[at] = state
    return failures


class AnswerText:
    """The text of an answer up to a stop string; tokens that may belong to one are held back."""

    def __init__(
        self, stream: Detokenizer, pieces: Pieces, stops: Sequence[str], prompt: Sequence[int]
    ) -> None:
        """``prompt``: the tokens before the first that is pushed."""
        self._stream, self._pieces = stream, pieces
        self._matcher = StopMatcher(stops)
        self._held: deque[tuple[int, bytes]] = deque()
        self._bytes = 0  # of the tokens held back
        self.stopped = False
        """A stop string has come."""
        before, missing = [], self._matcher.longest - 1
        for token in reversed(prompt):
            if missing <= 0:
                break
            before.append(pieces[token])
            missing -= len(before[-1])
        self._matcher.push(b"".join(reversed(before)))

    def push(self, token: int) -> str:
        """Return the text that, now that ``token`` has come, is certain to stand before any stop string."""
        if not self._matcher.longest:
            return self._stream.push(token)
        piece = self._pieces[token]
        self._held.append((token, piece))
        self._bytes += len(piece)
        self.stopped = self._matcher.push(piece)
        begins = self._matcher.begins
        text = ""
        while self._held and self._bytes - len(self._held[0][1]) >= begins:
            first, piece = self._held.popleft()
            self._bytes -= len(piece)
            text += self._stream.push(first)
        return text + self._last(begins) if self.stopped else text

    def flush(self) -> str:
        """Return what was held back: at the end of an answer it is no stop string. Nothing comes after it."""
        if self.stopped:
            return ""
        text = "".join(self._stream.push(token) for token, _ in self._held)
        self._held.clear()
        return text + self._stream.flush()

    def _last(self, begins: int) -> str:
        """Return the end of the text, given that a stop string begins ``begins`` bytes before the end of what is
        held back."""
        if begins >= self._bytes:  # with a token, or in the prompt
            return self._stream.flush()
        token, piece = self._held[0]
        cut = piece[len(piece) - (begins - (self._bytes - len(piece))) :]
        text = self._stream.push(token) + self._stream.flush()
        if self._pieces.silent(token):
            return text
        return text[: max(len(text) - len(cut.decode(errors="replace")), 0)]
