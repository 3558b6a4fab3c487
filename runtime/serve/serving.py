"""The batch server: takes requests from any thread or from asyncio, and serves them together in one worker thread.

Its memory and its queue are bounded when it is opened: a number of sequences of a number of tokens each, and a number
of requests that wait. A request beyond that is refused at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import TracebackType

from ..bundle.folder import Bundle
from ..bundle.heads import read_heads
from ..checks import whole_number
from ..decode.encoding import check_encoder
from ..decode.exits import ExitRule
from ..decode.kv_layout import KV_LAYOUTS
from ..decode.modes import MANY, Mode, check_mode
from ..decode.policy_choice import choose_policy
from ..decode.sampling import SamplingOptions
from ..decode.sequence import TokenSequence
from ..decode.whole_tokens import token_mode
from ..engines.backend import I64, Backend, runs_tokens
from ..engines.table import ENGINES, open_backend, usual_engine
from ..errors import UsageError
from ..model.program import Program
from ..session import Session
from ..text.template import Objects
from ..worker import Worker
from .budget import KvBudget
from .handle import Handle
from .pool import SequencePool
from .prefill import checked_stall
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
        reuse: bool | None = None,
        max_stall: float | None = None,
        kv_limit: int | None = None,
    ) -> None:
        """As ``open``, with a backend that was opened for packed lanes."""
        for name, value, least in (("sequences", sequences, 1), ("waiting", waiting, 0)):
            whole_number(value, name, least)
        # It checks requests and holds the policy; it generates nothing.
        self._session = session = Session(bundle, backend, context, exit=exit, skipped_kv=skipped_kv, kv=kv)
        self.policy = session.policy
        """Exit rule, KV layout, and what becomes of skipped K/V."""
        self.context = session.context
        """Tokens that prompt and answer may have together."""
        check_mode(Mode(bundle.program, self.policy, MANY, backend.name, backend.can))
        self.sequences = sequences
        """Requests that run at once."""
        self.waiting = waiting
        """How many more may wait."""
        layout = KV_LAYOUTS[self.policy.kv]
        # With a row for idle lanes to write to (packed.py).
        cache = backend.new_cache(sequences, self.context + 1, layout.slots)
        rule = self.policy.rule
        even = isinstance(rule, ExitRule) and rule.measure is None
        mode = token_mode(TokenSequence(session.program, self.policy, session.heads, lambda: 1))
        mode = mode if runs_tokens(backend) else None
        at_once = session.program.prefix_lm
        if max_stall is not None and at_once:
            raise UsageError(
                f"max_stall is {max_stall} ms, and the tokens of this model's prompts see each other: they cannot go "
                "in by pieces that keep a bound; leave it out"
            )
        scheduler = self.scheduler = Scheduler(
            backend, cache, sequences, aligned=even, max_stall=checked_stall(max_stall), mode=mode
        )
        whole = mode is not None and layout.grows

        def empty() -> TokenSequence:
            """Return an empty sequence; without self, which the worker's thread must not keep alive."""
            made = TokenSequence(session.program, session.policy, session.heads, scheduler.chunk)
            made.whole = whole
            return made

        self.pool = SequencePool(
            KvBudget(cache, kv_limit),
            sequences,
            empty,
            reuse=layout.grows and not at_once and (backend.can.row_exact if reuse is None else reuse),
            copies=backend.can.host_rows,
        )
        self._worker = Worker(session, scheduler, self.pool, waiting)
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
        cpus: Sequence[int] = (),
        reuse: bool | None = None,
        max_stall: float | None = None,
        kv_limit: int | None = None,
    ) -> BatchServer:
        """Open the bundle at ``path`` for ``sequences`` requests at once, and ``waiting`` more in a queue.

        - ``sequences``: requests that run at once, 1 or more; ``waiting``: how many more may wait, 0 or more. One more
          is a BusyError of ``submit``.
        - ``context``: tokens that prompt and answer may have together; K/V are of ``sequences`` × as many at most.
        - ``reuse``: a prompt that begins as one that a sequence still holds is prefilled from where they differ; None:
          where the engine is row-exact, so that no answer depends on it; never where a prompt's tokens see each
          other.
        - ``max_stall``: milliseconds that prompts may add to the time between two tokens of a request; None: prompts go
          in chunks of 32 tokens.
        - ``kv_limit``: bytes that K/V of all requests may take; what does not fit waits.

        The rest is as in ``Session.open``, and so are the errors; of the engines, coreml serves one sequence only.
        """
        bundle = Bundle.open(path, verify=verify).at_depth(depth)
        check_encoder(bundle.program, bundle.folder, False)
        name = engine or usual_engine(bundle)
        if name in ENGINES:  # nothing is loaded for what would be refused
            policy = choose_policy(
                bundle.program, read_heads(bundle), bundle.manifest.exits, exit, skipped_kv, kv
            )
            check_mode(Mode(bundle.program, policy, MANY, name, ENGINES[name].can))
        backend = open_backend(engine, bundle, threads, packed=True, kv_bits=kv_bits, cpus=cpus)
        return BatchServer(
            bundle,
            backend,
            sequences=sequences,
            waiting=waiting,
            context=context,
            exit=exit,
            skipped_kv=skipped_kv,
            kv=kv,
            reuse=reuse,
            max_stall=max_stall,
            kv_limit=kv_limit,
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes that K/V take now, what requests share once."""
        return self.scheduler.cache.nbytes

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
        client: Hashable = None,
    ) -> Handle:
        """Submit a request, as ``Session.generate`` takes it, from any thread; returns at once.

        ``client``: whose request it is. Where requests wait, those of the client that has had the fewest tokens go
        first; one client's go in their order. Raises what ``generate`` raises, and UsageError for a request that is
        larger than ``kv_limit``; BusyError when the queue is full, EngineError when the engine has failed or this is
        a fork of the process that opened it, UsageError when it is closed.
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
        try:
            hash(client)
        except TypeError as error:
            raise UsageError(
                f"client is a {type(client).__name__}, which requests cannot be counted by; give a name or a number"
            ) from error
        self.pool.budget.check(len(request.prompt) + request.room(self.context) - 1)
        handle = Handle(request, self._worker.cancel, client)
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
