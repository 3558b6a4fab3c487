"""The queue of waiting requests: fair between clients, however much each of them requests.

A client's requests are served in their order. Among clients the one comes next that was served least: each has a
counter of tokens, of prompts and answers, and one that comes back from a pause goes on from the lowest counter of those
who stayed, so that a pause saves nothing up (Virtual Token Counter, arXiv 2401.00588, algorithm 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

from .handle import Handle


class FairQueue:
    """Handles by their ``client``. Without clients, which is one client: first come, first served."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Handle]] = {}
        self._running: dict[Hashable, int] = {}
        """Requests of each client that have started and not ended."""
        self._served: dict[Hashable, int] = {}
        """Tokens that each client was given, of all that still count."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Handle]:
        """All that wait, each client's in their order, that client first which was served least."""
        for client in sorted(self._waiting, key=self._counter):
            yield from self._waiting[client]

    def __contains__(self, handle: Handle) -> bool:
        return handle in self._waiting.get(handle.client, ())

    def push(self, handle: Handle) -> None:
        """Add a request, the newest of its client's."""
        client = handle.client
        if client not in self._waiting and client not in self._running:
            floor = min((self._counter(other) for other in self._active()), default=0)
            self._served[client] = max(self._counter(client), floor)
        self._waiting.setdefault(client, deque()).append(handle)

    def remove(self, handle: Handle) -> None:
        """Take out a request that will not start."""
        waiting = self._waiting[handle.client]
        waiting.remove(handle)
        if not waiting:
            del self._waiting[handle.client]
        self._forget()

    def start(self, handle: Handle, tokens: int) -> None:
        """Take out a request that starts now, and may take ``tokens`` in all."""
        client = handle.client
        self._running[client] = self._running.get(client, 0) + 1
        self._served[client] = self._counter(client) + tokens
        self.remove(handle)

    def end(self, handle: Handle, unused: int) -> None:
        """Note that a request that had started has ended, with so many tokens less than it might have taken."""
        client = handle.client
        self._served[client] = self._counter(client) - unused
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._forget()

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()

    def _counter(self, client: Hashable) -> int:
        return self._served.get(client, 0)

    def _active(self) -> set[Hashable]:
        return {*self._waiting, *self._running}

    def _forget(self) -> None:
        """Drop the counters of clients that are away and would come back with no more than the lowest one."""
        active = self._active()
        floor = min((self._counter(client) for client in active), default=None)
        for client in [each for each in self._served if each not in active]:
            if floor is None or self._served[client] <= floor:
                del self._served[client]
