"""The batch engine: requests from any thread or from asyncio, which one worker thread serves together.

The worker (``worker.py``) sleeps when there is nothing to do. What is taken is bounded from the start: so many
sequences of so many tokens each, and so many requests that wait; what does not fit is refused at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ..bundle.folder import Bundle
from ..bundle.heads import read_heads
from ..checks import whole_number
from ..decode.encoding import check_encoder
from ..decode.exits import ExitRule
from ..decode.modes import MANY, Mode, check_mode, choose_policy
from ..decode.sampling import SamplingOptions
from ..engines.backend import I64, Backend
from ..engines.table import ENGINES, open_backend, usual_engine
from ..model.program import Program
from ..session import Session
from ..text.template import Objects
from ..worker import Worker
from .handle import Handle
from .scheduler import Scheduler

__all__ = ["BatchServer", "Handle"]


class BatchServer:
    """A bundle that serves several requests at a time, by continuous depth-wise batching.

    One that is dropped without ``close`` serves what was submitted and then lets go of everything.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        sequences: int = 4,
        waiting: int = 64,
        context: int | None = None,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
    ) -> None:
        """As ``open``, with a backend that was opened for packed lanes."""
        for name, value, least in (("sequences", sequences, 1), ("waiting", waiting, 0)):
            whole_number(value, name, least)
        # A session that generates nothing: it checks requests and knows the policy.
        self._session = Session(bundle, backend, context, exit=exit, skipped_kv=skipped_kv, kv=kv)
        self.policy, self.context = self._session.policy, self._session.context
        """Who stops where, and the tokens that prompt and answer may have together."""
        check_mode(Mode(bundle.program, self.policy, MANY, backend.name, backend.can))
        self.sequences, self.waiting = sequences, waiting
        cache = backend.new_cache(sequences, self.context + 1)  # a row for idle lanes to write to (packed.py)
        rule = self.policy.rule
        even = isinstance(rule, ExitRule) and rule.measure is None
        self.scheduler = Scheduler(backend, cache, sequences, aligned=even)
        self.kv_bytes = cache.nbytes
        """Bytes reserved for K and V."""
        self._worker = Worker(self._session, self.scheduler, waiting)
        weakref.finalize(self, self._worker.finish).atexit = False  # then it is closed (worker.py)

    @staticmethod
    def open(
        path: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        sequences: int = 4,
        waiting: int = 64,
        context: int | None = None,
        depth: int | None = None,
        verify: bool = True,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
        kv_bits: int = 32,
    ) -> BatchServer:
        """Open the bundle at ``path`` for ``sequences`` requests at once, and ``waiting`` more in a queue.

        ``context``: tokens that prompt and answer may have together; K and V of ``sequences`` times as many are
        reserved. The rest is as in ``Session.open``, and so are the errors.
        """
        bundle = Bundle.open(path, verify=verify).at_depth(depth)
        check_encoder(bundle.program, bundle.folder, False)
        name = engine or usual_engine(bundle)
        if name in ENGINES:  # nothing is loaded for what would be refused
            policy = choose_policy(
                bundle.program, read_heads(bundle), bundle.manifest.exits, exit, skipped_kv, kv
            )
            check_mode(Mode(bundle.program, policy, MANY, name, ENGINES[name].can))
        backend = open_backend(engine, bundle, threads, packed=True, kv_bits=kv_bits)
        return BatchServer(
            bundle,
            backend,
            sequences=sequences,
            waiting=waiting,
            context=context,
            exit=exit,
            skipped_kv=skipped_kv,
            kv=kv,
        )

    @property
    def program(self) -> Program:
        """The model's architecture."""
        return self._session.program

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
        logprobs: int | None = None,
    ) -> Handle:
        """Ask for a text, as ``Session.generate`` does, from any thread; returns at once.

        Refused at once: what ``generate`` refuses, with the same errors; BusyError when the queue is full, EngineError
        when the engine has failed or this is a fork of the process that opened it, UsageError when it is closed.
        """
        request = self._session.prompts.request(
            prompt,
            max_tokens,
            sampling,
            stop,
            chat,
            tools=tools,
            documents=documents,
            template=template,
            logprobs=logprobs,
        )
        handle = Handle(request, self._worker.cancel)
        self._worker.submit(handle)
        return handle

    def close(self) -> None:
        """End every request, as cancelled, and the worker. Closing twice is fine."""
        self._worker.close()
        self._session.close()

    def __enter__(self) -> BatchServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
