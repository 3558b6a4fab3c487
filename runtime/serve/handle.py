"""A caller's view of a request: its steps as they come, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from .requests import Finish, Request, Step


@dataclass(frozen=True)
class Completion:
    """All steps of a request; ``cancelled``: its caller, or the closing of the server, ended it.

    ``reused``: tokens of its prompt that a sequence held already, so that they were not prefilled.
    """

    steps: tuple[Step, ...]
    cancelled: bool
    reused: int = 0

    @property
    def text(self) -> str:
        """The text of all steps."""
        return "".join(step.text for step in self.steps)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens, in order."""
        return tuple(step.token for step in self.steps)

    @property
    def finish(self) -> Finish | None:
        """Why it ended, as in ``Step.finish``; None where it was cancelled before."""
        return self.steps[-1].finish if self.steps else None

    @property
    def depths(self) -> tuple[int, ...]:
        """How many depths each token ran."""
        return tuple(step.depth for step in self.steps)


class Handle:
    """One request, for any number of readers in any thread: each gets every step from the first on.

    ``for step in handle`` and ``async for step in handle`` stream the steps; they end when the request does, with the
    error that ended it if there was one. Leaving such a loop early does not end the request, since it may have other
    readers: ``cancel`` does, and so does leaving ``with handle:`` (or ``async with handle:``) around it. Cancelling an
    asyncio task in ``wait`` or ``async for`` cancels the request; ``asyncio.shield(handle.wait())`` does not. All
    steps are kept; there are ``max_tokens`` at most.
    """

    def __init__(self, request: Request, cancel: Callable[[Handle], None], client: Hashable = None) -> None:
        self.request = request
        """What was submitted, checked: the prompt's ids and the options."""
        self.client = client
        """Whose request it is, as ``submit`` got it."""
        self.reused = 0
        """Tokens of its prompt that a sequence held already, once it has started."""
        self._cancel: Callable[[Handle], None] | None = cancel
        self._lock = threading.Lock()
        self._steps: list[Step] = []
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._cancelled = False
        self._wake: list[Callable[[], object]] = []
        """Called once each at the next change, on behalf of waiting readers."""

    @property
    def done(self) -> bool:
        """True once the request has ended: finished, cancelled or failed."""
        return self._ended.is_set()

    @property
    def count(self) -> int:
        """Steps so far."""
        return len(self._steps)

    def cancel(self) -> None:
        """End the request wherever it is; its sequence is free for others at once. No effect when it has ended."""
        cancel = self._cancel
        if not self.done and cancel is not None:
            cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return all steps; raise the error that ended it, or TimeoutError after ``timeout``
        seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout} s")
        return self._completion()

    async def wait(self) -> Completion:
        """Do what ``result`` does, for asyncio. Cancelling the task that waits here cancels the request."""
        async for _ in self:
            pass
        return self._completion()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> Handle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Step]:
        seen = 0
        while True:
            changed = threading.Event()
            steps, done = self._after(seen, changed.set)
            yield from steps
            seen += len(steps)
            if done:
                self._completion()
                return
            if not steps:
                changed.wait()

    async def __aiter__(self) -> AsyncIterator[Step]:
        seen, loop = 0, asyncio.get_running_loop()
        while True:
            changed = asyncio.Event()

            def wake(changed: asyncio.Event = changed) -> None:
                with suppress(RuntimeError):  # the reader's event loop was closed meanwhile
                    loop.call_soon_threadsafe(changed.set)

            steps, done = self._after(seen, wake)
            for step in steps:
                yield step
            seen += len(steps)
            if done:
                self._completion()
                return
            if not steps:
                try:
                    await changed.wait()
                except asyncio.CancelledError:
                    self.cancel()
                    raise

    def push(self, step: Step) -> None:
        """Append a step. Called by the server."""
        with self._lock:
            self._steps.append(step)
            wake, self._wake = self._wake, []
        for call in wake:
            call()

    def end(self, error: BaseException | None = None, cancelled: bool = False) -> None:
        """Mark the request as ended; only the first call has an effect. Called by the server."""
        with self._lock:
            if self._ended.is_set():
                return
            self._error, self._cancelled = error, cancelled
            self._ended.set()
            self._cancel = None  # it would keep the engine alive
            wake, self._wake = self._wake, []
        for call in wake:
            call()

    def forked(self, error: BaseException) -> None:
        """End a request that is running in the child of a fork, where no worker serves it. Called by the server."""
        ended, self._ended, self._lock = self._ended.is_set(), threading.Event(), threading.Lock()
        if ended:
            self._ended.set()
        else:
            self._wake = []  # of threads and event loops that the child does not have
            self.end(error)

    def _after(self, seen: int, wake: Callable[[], object]) -> tuple[list[Step], bool]:
        """Return the steps after the first ``seen``, and whether the request has ended.

        Without new steps or an end, ``wake`` is called at the next change.
        """
        with self._lock:
            steps, done = self._steps[seen:], self._ended.is_set()
            if not steps and not done:
                self._wake.append(wake)
        return steps, done

    def _completion(self) -> Completion:
        if self._error is not None:
            raise self._error
        return Completion(tuple(self._steps), self._cancelled, self.reused)
