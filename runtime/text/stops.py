"""Stop strings: where a stream of text ends."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError


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
