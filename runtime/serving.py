"""Many users on one engine: submit from any thread or from asyncio, one worker thread does the work.

The worker sleeps when there is nothing to do. What is taken is bounded from the start: so many sequences of so many
tokens each, and so many requests that wait; what does not fit is refused at once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType

from .backend import F32, I64, Backend
from .backends import open_backend
from .bundle import Bundle
from .checks import whole_number
from .course import Ask, Course, check_course
from .errors import BusyError, EngineError, UsageError
from .exits import ExitRule
from .handle import Handle
from .requests import Answer
from .sampling import Sampler, SamplingOptions
from .scheduler import Scheduler, Task
from .session import Session, Step
from .spec import Spec
from .text.template import Objects
from .timing import Stopwatch

__all__ = ["Engine", "Handle"]

logger = logging.getLogger(__name__)


class Engine:
    """A bundle that serves several requests at a time, by continuous depth-wise batching."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        sequences: int = 4,
        waiting: int = 64,
        context: int | None = None,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        missing: str | None = None,
        kv: str | None = None,
    ) -> None:
        """As ``open``, with a backend that was opened for packed lanes."""
        for name, value, least in (("sequences", sequences, 1), ("waiting", waiting, 0)):
            whole_number(value, name, least)
        # A session that generates nothing: it checks requests and knows the policy.
        self._session = Session(bundle, backend, context, exit=exit, missing=missing, kv=kv)
        self.policy, self.context = self._session.policy, self._session.context
        """Who stops where, and the tokens that prompt and answer may have together."""
        check_course(bundle.spec, self.policy)
        self.sequences, self.waiting = sequences, waiting
        cache = backend.new_cache(sequences, self.context + 1)  # a row for idle lanes to write to (packed.py)
        rule = self.policy.rule
        even = isinstance(rule, ExitRule) and rule.measure is None
        self.scheduler = Scheduler(backend, cache, sequences, aligned=even)
        self.kv_bytes = cache.nbytes
        """Bytes reserved for K and V."""
        self._changed = threading.Condition()
        self._queue: deque[Handle] = deque()
        self._running: dict[Handle, Task] = {}
        self._cancelled: list[Handle] = []
        self._closing = False
        self._failure: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="edgeloop-engine", daemon=True)
        self._worker.start()

    @staticmethod
    def open(
        path: str | Path,
        *,
        engine: str = "onnx",
        threads: int | None = None,
        sequences: int = 4,
        waiting: int = 64,
        context: int | None = None,
        verify: bool = True,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        missing: str | None = None,
        kv: str | None = None,
    ) -> Engine:
        """Open the bundle at ``path`` for ``sequences`` requests at once, and ``waiting`` more in a queue.

        ``context``: tokens that prompt and answer may have together; K and V of ``sequences`` times as many are
        reserved. The rest is as in ``Session.open``, and so are the errors.
        """
        bundle = Bundle.open(path, verify=verify)
        backend = open_backend(engine, bundle, threads, packed=True)
        return Engine(
            bundle,
            backend,
            sequences=sequences,
            waiting=waiting,
            context=context,
            exit=exit,
            missing=missing,
            kv=kv,
        )

    @property
    def spec(self) -> Spec:
        """The model's architecture."""
        return self._session.spec

    def submit(
        self,
        prompt: str | Sequence[int] | I64,
        max_tokens: int = 256,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
    ) -> Handle:
        """Ask for a text, as ``Session.generate`` does, from any thread; returns at once.

        Refused at once: what ``generate`` refuses, with the same errors; BusyError when the queue is full, EngineError
        when the engine has failed, UsageError when it is closed.
        """
        request = self._session.request(
            prompt, max_tokens, sampling, stop, chat, tools=tools, documents=documents, template=template
        )
        handle = Handle(request, self._cancel)
        with self._changed:
            if self._failure is not None:
                raise EngineError(f"the engine has failed ({self._failure}); open it again")
            if self._closing:
                raise UsageError("the engine is closed; open it again")
            # Whoever waits for a sequence that is free already is not waiting.
            if len(self._queue) + len(self._running) >= self.sequences + self.waiting:
                raise BusyError(
                    f"{len(self._running)} requests run and {len(self._queue)} wait, which is all that this engine "
                    "takes; try again later, or open it with more sequences or a longer queue"
                )
            self._queue.append(handle)
            self._changed.notify_all()
        return handle

    def close(self) -> None:
        """End every request, as cancelled, and the worker. Closing twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cancel(self, handle: Handle) -> None:
        with self._changed:
            self._cancelled.append(handle)
            self._changed.notify_all()

    def _work(self) -> None:
        """The worker thread: until the engine is closed, or an engine call fails."""
        error: BaseException | None = None
        try:
            while self._admit():
                self.scheduler.tick()
        except BaseException as failure:  # whatever it is, nobody may wait for ever
            logger.debug("the engine failed", exc_info=True)
            error = failure
        with self._changed:
            self._failure, self._closing = error, True
            left = [*self._running, *self._queue]
            tasks = list(self._running.values())
            self._running.clear()
            self._queue.clear()
        for task in tasks:
            self.scheduler.remove(task)
        for handle in left:
            handle.end(error, cancelled=error is None)

    def _admit(self) -> bool:
        """Sleep until there is something to do; let requests in and out. False when the engine is closed."""
        if self.scheduler.tasks and not (self._closing or self._queue or self._cancelled):
            return True  # most ticks; a change that is seen one tick later does no harm
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._queue or self._cancelled or self.scheduler.tasks
            )
            if self._closing:
                return False
            cancelled, self._cancelled = self._cancelled, []
            for handle in cancelled:
                if handle in self._queue:
                    self._queue.remove(handle)
            dropped = [task for h in cancelled if (task := self._running.pop(h, None)) is not None]
            new: list[Handle] = []
            free = len(self.scheduler.free) + len(dropped)
            while self._queue and len(new) < free:
                handle = self._queue.popleft()
                new.append(handle)
                self._running[handle] = self._task(handle)
        for task in dropped:
            self.scheduler.remove(task)
        for handle in cancelled:
            handle.end(cancelled=True)
        for handle in new:
            self.scheduler.add(self._running[handle])
        return True

    def _task(self, handle: Handle) -> Task:
        def ended(error: Exception | None) -> None:
            with self._changed:
                self._running.pop(handle, None)
            handle.end(error)

        return Task(self._answer(handle), ended)

    def _answer(self, handle: Handle) -> Generator[Ask, F32, None]:
        """The wishes of a request, whose steps go to its handle."""
        request, session = handle.request, self._session
        course = Course(session.spec, self.policy, session.heads, self.scheduler.chunk)
        choose = Sampler(request.sampling).choose
        answer = Answer(request, choose, session.spec, session.tokenizer_or_none, self.context)
        watch = Stopwatch()
        logits, depth = yield from course.prompt(request.prompt)
        while True:
            token, text = answer.choose(logits[-1])
            handle.push(Step(text, token, depth, watch.lap_ms(), answer.finish))
            if answer.finish:
                return
            logits, depth = yield from course.step(token)
