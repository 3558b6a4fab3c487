"""What a caller holds of a request: its steps as they come, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .requests import Request

if TYPE_CHECKING:
    from .session import Step


@dataclass(frozen=True)
class Completion:
    """All that a request gave: ``cancelled`` when it was ended by its caller or by the engine's end."""

    steps: tuple[Step, ...]
    cancelled: bool

    @property
    def text(self) -> str:
        """The text of all steps."""
        return "".join(step.text for step in self.steps)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens, in order."""
        return tuple(step.token for step in self.steps)

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths that were run for each token."""
        return tuple(step.depth for step in self.steps)


class Handle:
    """One request. Any thread may read it, and any number of readers: each sees every step from the first.

    ``for step in handle`` and ``async for step in handle`` stream the steps; they end when the request does, with the
    error that ended it if there was one. Steps that nobody reads are kept: there are ``max_tokens`` at most.
    """

    def __init__(self, request: Request, cancel: Callable[[Handle], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._changed = threading.Condition()
        self._steps: list[Step] = []
        self._done = self._cancelled = False
        self._error: BaseException | None = None
        self._wake: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Has it ended, in whatever way?"""
        return self._done

    def cancel(self) -> None:
        """End the request wherever it is; its lane is free for others at once. Nothing happens when it has ended."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end, at most ``timeout`` seconds (then TimeoutError); raises what ended the request."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"the request has not ended within {timeout} s")
        return self._completion()

    async def wait(self) -> Completion:
        """As ``result``, for asyncio."""
        async for _ in self:
            pass
        return self._completion()

    def __iter__(self) -> Iterator[Step]:
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done or len(self._steps) > seen)  # noqa: B023
                steps, done = self._steps[seen:], self._done
            yield from steps
            seen += len(steps)
            if done:
                self._completion()
                return

    async def __aiter__(self) -> AsyncIterator[Step]:
        seen, loop = 0, asyncio.get_running_loop()
        while True:
            more = asyncio.Event()

            def wake(more: asyncio.Event = more) -> None:
                loop.call_soon_threadsafe(more.set)

            with self._changed:
                steps, done = self._steps[seen:], self._done
                if not steps and not done:
                    self._wake.append(wake)
            for step in steps:
                yield step
            seen += len(steps)
            if done:
                self._completion()
                return
            if not steps:
                try:
                    await more.wait()
                finally:
                    with self._changed:
                        if wake in self._wake:
                            self._wake.remove(wake)

    def push(self, step: Step) -> None:
        """One more step; the engine's side."""
        with self._changed:
            self._steps.append(step)
            self._notify()

    def end(self, error: BaseException | None = None, cancelled: bool = False) -> None:
        """There will be no more steps; the engine's side. The first end counts."""
        with self._changed:
            if not self._done:
                self._done, self._error, self._cancelled = True, error, cancelled
                self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        wake, self._wake = self._wake, []
        for call in wake:
            try:
                call()
            except RuntimeError:  # the reader's event loop was closed meanwhile
                continue

    def _completion(self) -> Completion:
        if self._error is not None:
            raise self._error
        return Completion(tuple(self._steps), self._cancelled)
