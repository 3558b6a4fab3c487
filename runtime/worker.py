"""The thread that serves many requests: starts and ends them, and runs the scheduler's ticks.

It holds no reference to the ``BatchServer`` that a caller has. So one that is dropped without ``close`` is collected,
and its thread ends once everything that was submitted has been served. A worker that is open when the interpreter exits
is closed before that.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

from .decode.sampling import Sampler
from .decode.stage_call import StageCall
from .errors import BusyError, EngineError, UsageError
from .serve.handle import Handle
from .serve.pool import PooledSequence, SequencePool
from .serve.requests import Answer, Step
from .serve.scheduler import Scheduler
from .serve.tasks import Task, TokenCall
from .serve.waiting import FairQueue
from .session import Session
from .timing import Stopwatch
from .wording import reason

logger = logging.getLogger(__name__)

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
"""Those that were not closed: for the end of the interpreter, and for its forks."""
_watched = False


class Worker:
    """A queue of requests, and the thread that serves them."""

    def __init__(self, session: Session, scheduler: Scheduler, pool: SequencePool, waiting: int) -> None:
        """``session``: the model and its policy; it generates nothing itself. ``waiting``: the queue's length."""
        self._session, self._scheduler, self._pool, self._waiting = session, scheduler, pool, waiting
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._running: dict[Handle, tuple[Task, PooledSequence]] = {}
        self._cancelled: list[Handle] = []
        self._closing = self._finishing = False
        self._failure: EngineError | None = None
        self._forked: EngineError | None = None
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._work, name="edgeloop-engine", daemon=True)
        _watch(self)
        self._thread.start()

    def submit(self, handle: Handle) -> None:
        """Queue a request. EngineError, UsageError or BusyError where it cannot be served."""
        if self._forked is not None:
            raise self._forked
        scheduler = self._scheduler
        with self._changed:
            if self._failure is not None:
                raise EngineError(f"the engine has failed ({self._failure}); open it again")
            if self._closing:
                raise UsageError("the engine is closed; open it again")
            # A request in the queue for which a sequence is free does not count as waiting.
            if len(self._queue) + len(self._running) >= scheduler.sequences + self._waiting:
                raise BusyError(
                    f"{len(self._running)} requests run and {len(self._queue)} wait, which is all that this engine "
                    "takes; try again later, or open it with more sequences or a longer queue"
                )
            self._queue.push(handle)
            self._handles.add(handle)
            self._changed.notify_all()

    def cancel(self, handle: Handle) -> None:
        """End a request wherever it is."""
        with self._changed:
            self._cancelled.append(handle)
            self._changed.notify_all()

    def close(self) -> None:
        """End every request, as cancelled, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        _workers.discard(self)

    def finish(self) -> None:
        """End the thread once everything that was submitted is served. Returns at once."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def forked(self) -> None:
        """End all requests in the child of a fork, where the thread does not exist: they would wait for ever."""
        self._changed = threading.Condition()  # the parent's thread may have held the other one
        self._closing = True
        self._forked = EngineError(
            f"this process (id {os.getpid()}) was forked from the one that opened the engine, and its worker is not "
            "here; open another engine after the fork"
        )
        for handle in list(self._handles):
            handle.forked(self._forked)

    def _work(self) -> None:
        """Admit requests and run ticks, until the engine is closed or an engine call fails: the thread's function."""
        error: BaseException | None = None
        try:
            while self._admit():
                self._scheduler.tick()
        except BaseException as failure:  # whatever it is, nobody may wait for ever
            logger.debug("the engine failed", exc_info=True)
            error = as_error(failure)
        with self._changed:
            self._closing = True
            if error is not None:
                self._failure = EngineError(str(error))
            left = [*self._running, *self._queue]
            tasks = [task for task, _ in self._running.values()]
            self._running.clear()
            self._queue.clear()
        for task in tasks:
            self._scheduler.remove(task)
        for handle in left:
            handle.end(error, cancelled=error is None)

    def _admit(self) -> bool:
        """Sleep until there is work; end cancelled requests and start queued ones. False when the engine is closed."""
        tasks = self._scheduler.tasks
        if tasks and not (self._closing or self._queue or self._cancelled):
            return True  # most ticks; a change that is seen one tick later does no harm
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._finishing or self._queue or self._cancelled or tasks
            )
            if self._closing or not (self._queue or self._cancelled or tasks):
                return False
            cancelled, self._cancelled = self._cancelled, []
            for handle in cancelled:
                if handle in self._queue:
                    self._queue.remove(handle)
            dropped = [(h, *self._running.pop(h)) for h in cancelled if h in self._running]
        for handle, task, place in dropped:
            self._stop(handle, task, place)
        for handle in cancelled:
            handle.end(cancelled=True)
        self._start_queued()
        return True

    def _start_queued(self) -> None:
        """Start queued requests, in the queue's order, while there are sequences and memory for them.

        One for which there is no memory holds up those behind it, or it might wait for ever. One that had better wait
        for the prompt of another does not.
        """
        started: list[Task] = []
        with self._changed:
            for handle in list(self._queue) if self._pool.free else ():
                prompt, most = handle.request.prompt, self._tokens(handle)
                if self._pool.awaits(prompt):
                    continue
                taken = self._pool.take(prompt, most)
                if taken is None:
                    break
                self._queue.start(handle, most)
                started.append(self._task(handle, *taken))
                if not self._pool.free:
                    break
        for task in started:
            self._scheduler.add(task)

    def _tokens(self, handle: Handle) -> int:
        """How many tokens the prompt and the answer of a request may have."""
        request = handle.request
        return len(request.prompt) + request.room(self._session.context) - 1

    def _task(self, handle: Handle, place: PooledSequence, reused: int) -> Task:
        """Return the task of a request on ``place``, and note that it runs."""
        task = Task(
            place.number, place.tokens, self._answer(handle, place, reused), self._ended(handle, place)
        )
        self._running[handle] = task, place
        return task

    def _stop(self, handle: Handle, task: Task, place: PooledSequence) -> None:
        """End the task of a cancelled request; its sequence keeps the tokens that were done."""
        call = self._scheduler.remove(task)
        place.tokens.take_back(place.tokens.cached, [call] if call is not None else [])
        self._leave(handle, place)

    def _leave(self, handle: Handle, place: PooledSequence) -> None:
        """Note that a request that had started has ended."""
        self._pool.give_back(place)
        with self._changed:
            self._queue.end(handle, place.most - len(handle.request.prompt) - handle.count)

    def _ended(self, handle: Handle, place: PooledSequence) -> Callable[[BaseException | None], None]:
        """Return the function that the scheduler calls when the request of ``handle`` has ended by itself."""

        def ended(error: BaseException | None) -> None:
            with self._changed:
                self._running.pop(handle, None)
            if error is not None:
                self._pool.clear(place)
            self._leave(handle, place)
            handle.end(None if error is None else as_error(error))

        return ended

    def _answer(
        self, handle: Handle, place: PooledSequence, reused: int
    ) -> Generator[StageCall | TokenCall, Any, None]:
        """Yield the calls of a request on ``place``, which holds the first ``reused`` tokens of its prompt.

        Its steps go to its handle.
        """
        request, session, sequence = handle.request, self._session, place.tokens
        choose = Sampler(request.sampling, len(request.prompt)).choose
        answer = Answer(request, choose, session.program, session.tokenizer_or_none, session.context)
        place.ids = answer.ids
        handle.reused = reused
        watch = Stopwatch()
        ids, scheduler = request.prompt[reused:], self._scheduler
        with scheduler.slot_for_each_depth(place.number, sequence, len(ids)):
            logits, ran = yield from sequence.prompt(ids)
        depth = int(ran[-1])
        self._running[handle][0].prompt = False
        token, text = answer.choose(logits[-1])
        by = None if answer.wants_logits or request.sampling.adjusts else request.sampling
        over = 0

        def push() -> bool:
            handle.push(Step(text, token, depth, watch.lap_ms(), answer.finish, answer.logprobs))
            return answer.finish is not None

        with scheduler.whole_tokens(place.number, sequence, by) as call:
            while not (over or push()):
                if call is None:
                    logits, depth = yield from sequence.step(token)
                    token, text = answer.choose(logits[-1])
                    continue
                call.token, call.room = token, answer.left
                turned = yield call
                for number, (token, depth) in enumerate(turned.earlier):  # noqa: B007 - the last ones are kept
                    text = answer.take(token, None)
                    if push():  # behind a stop string
                        over = len(turned.earlier) - number
                        break
                else:
                    token, depth, found, _, _ = turned
                    if found is None:
                        text = answer.take(token, None)
                    else:
                        token, text = answer.choose(found)
        if over:
            sequence.truncate(sequence.cached - over)


def as_error(failure: BaseException) -> Exception:
    """Return ``failure`` as an Exception. A library's panic, which is none, becomes an EngineError."""
    if isinstance(failure, Exception):
        return failure
    error = EngineError(f"the request failed: {type(failure).__name__}: {reason(failure)}")
    error.__cause__ = failure
    return error


def _watch(worker: Worker) -> None:
    global _watched
    _workers.add(worker)
    if not _watched:
        _watched = True
        atexit.register(_close_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)


def _close_all() -> None:
    for worker in list(_workers):
        worker.close()


def _forked() -> None:
    for worker in list(_workers):
        worker.forked()
