"""The driver for one sequence alone: runs the stage calls of a ``TokenSequence`` on an engine, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter_ns

import numpy as np

from ..checks import longer
from ..engines.backend import F32, I64, Backend
from ..engines.kv import KVCache
from ..engines.tokens import Drafting, DraftReport, TokenDecoder
from ..errors import ContextError, UsageError
from ..timing import LoopClock
from .lent import Lender
from .policy import Policy, full_depth
from .prefill_slots import slot_for_each_depth
from .sampling import SamplingOptions
from .sequence import LogitRows, TokenSequence
from .stage_call import StageCall
from .stage_runner import Observe, StageRunner
from .token_lanes import SequenceLanes


class SequentialDecoder(StageRunner):
    """One sequence of a cache under a policy, from empty.

    Logits that are returned belong to the engine: they are valid until the next call.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        policy: Policy | None = None,
        heads: Mapping[str, F32] | None = None,
        *,
        cache_sequence: int = 0,
        chunk: int = 128,
        observe: Observe | None = None,
    ) -> None:
        """``policy``: by default full depth, with K/V as the model and the cache have them.

        ``heads``: what the host computes of a state (``bundle/heads.py``). ``cache_sequence``: which of the cache's
        sequences is this one. ``chunk``: most tokens of a text that go through together. ``observe``: see ``Observe``;
        it may be set later.
        """
        if chunk < 1:
            raise UsageError(f"the chunk size is {chunk}, wanted at least 1")
        super().__init__(backend, cache, cache_sequence, observe)
        self.heads = heads or {}
        self.chunk = chunk
        self.whole_tokens = True
        """Whether the engine may run whole tokens: not for a driver that keeps the sequence to itself."""
        self.depth = 0
        """Depths that the last token ran."""
        self.ran: I64 = np.empty(0, np.int64)
        """Depths that each token of the last text ran."""
        self._lender = Lender(backend, cache, cache_sequence, self._clock)
        self._lent: TokenDecoder | None = None
        self._sequence: TokenSequence
        self.restart(policy or full_depth(backend.program, cache.slots))

    def restart(self, policy: Policy) -> None:
        """Begin from empty, under ``policy``, over the same slots: one that the engine can have (``modes.py``)."""
        chunk = self.chunk  # without self: a cycle would keep the cache until the next collection
        if self._lent is not None:
            self._lender.count()
            self._lent = None
        self._sequence = TokenSequence(self.backend.program, policy, self.heads, lambda: chunk, self._clock)
        self._sequence.whole = True

    @property
    def sequence(self) -> TokenSequence:
        """What the driver drives. Whoever looks at it has it back from the engine."""
        self.settle()
        return self._sequence

    def settle(self) -> None:
        """Take the sequence back from the engine, if that has it."""
        if self._lent is not None:
            self._lender.take_back()
            self._lent = None

    @property
    def clock(self) -> LoopClock:
        """What it took so far."""
        if self._lent is not None:
            self._lender.count()
        return self._clock

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold."""
        return self.cache.capacity

    @property
    def cached(self) -> int:
        """Tokens that were run."""
        return self._sequence.cached if self._lent is None else self._lent.cached

    @property
    def filled(self) -> list[int]:
        """By depth: tokens whose K/V are in its slot."""
        return self.sequence.filled

    def prompt(self, ids: I64, rows: LogitRows = "last", prefix: int | None = None) -> F32:
        """Run ids [S] on top of the cached tokens → logits [N, V]; the rest as in ``TokenSequence.prompt``.

        ContextError when they do not fit into the cache; nothing is run then.
        """
        ids = self.checked(ids)
        with self._slot_for_each_depth(len(ids)):
            logits, self.ran = self._drive(self.sequence.prompt(ids, rows, prefix))
        self.depth = self.ran[-1].item()
        return logits

    def step(self, token: int) -> F32:
        """Run one more token, as a generated one → its logits [1, V]; ``depth`` says how deep it went."""
        begin, lent = perf_counter_ns(), self._borrower()
        if self.cached >= self.cache.capacity:
            self.checked(np.array([token]))
        if lent is not None:
            logits = lent.step(token)
            self._ran(lent, begin)
            return logits
        call = self._sequence.whole_step(token)
        if call is None:
            logits, self.depth = self._drive(self._sequence.step(token))
            return logits
        self._outside_ns = 0
        logits = self._whole(call)
        self._sequence.ran_whole(call)
        self.depth = len(self._sequence.filled)
        self._clock.total_ns += perf_counter_ns() - begin - self._outside_ns
        return logits

    def choose_by(self, options: SamplingOptions, ends: Sequence[int] = (), room: int = 0) -> bool:
        """Let ``next`` choose by ``options``; False where the host has to choose, or to decide between depths.

        ``room``: how many tokens will be wanted at most, none behind one of ``ends``: that many may be run ahead, and
        ``logits`` are not read.
        """
        lent = self._borrower()
        if lent is not None:
            lent.choose_by(options, ends, room)  # drafts too
        return lent is not None and not options.adjusts

    def draft(self, drafting: Drafting) -> bool:
        """Let the engine draft the tokens that it runs whole, as ``drafting`` says; False where it runs none."""
        self._lender.draft(drafting)
        return self._borrower() is not None

    def text(self, ids: Sequence[int] | I64) -> None:
        """Let the engine look drafts up in ``ids``, of which it has run the first; after ``draft`` only."""
        lent = self._borrower()
        assert lent is not None
        lent.text(ids)

    def drafts(self) -> DraftReport:
        """Return what became of the engine's drafts; after ``draft`` only."""
        lent = self._borrower()
        assert lent is not None
        return lent.drafts()

    def next(self, token: int) -> int:
        """Do what ``step`` does and return the next token, in one call; after ``choose_by`` only.

        ``NO_TOKEN`` where its logits leave none.
        """
        begin, lent = perf_counter_ns(), self._borrower()
        assert lent is not None
        if lent.cached >= self.cache.capacity:
            self.checked(np.array([token]))
        chosen = lent.next(token)
        self._ran(lent, begin)
        return chosen

    @property
    def logits(self) -> F32:
        """The logits [1, V] behind the token that ``next`` ran, valid until the next call."""
        assert self._lent is not None
        return self._lent.logits

    def _borrower(self) -> TokenDecoder | None:
        """Return what runs one more token in the engine, where it can and nobody watches the depths."""
        if self.observe is not None or not self.whole_tokens:
            self.settle()
        elif self._lent is None and not self._sequence.is_prompt:
            self._lent = self._lender.lend(self._sequence)
        return self._lent

    def _ran(self, lent: TokenDecoder, begin: int) -> None:
        """Note that the engine has run a whole token since ``begin``."""
        self.depth = lent.depth
        self._clock.total_ns += perf_counter_ns() - begin

    def _broke_off(self, call: StageCall | None) -> None:
        """Forget the token, or the piece of a prompt, that was under way."""
        self._sequence.take_back(self._sequence.cached, [] if call is None else [call])

    def every(self, ids: I64) -> Iterator[tuple[F32, int]]:
        """Run each of ids [S] as a generated token, in turn → its logits [1, V], the depths that it ran."""
        if self.sequence.rule.whole_text:
            logits = self.prompt(ids, "all")
            yield from ((logits[i : i + 1], int(depth)) for i, depth in enumerate(self.ran))
            return
        for token in ids.tolist():
            yield self.step(token), self.depth

    def can_truncate(self, tokens: int) -> bool:
        """Return whether the slots still hold what they held when the first ``tokens`` tokens had been run."""
        return self.sequence.can_truncate(self.cache, tokens)

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` tokens; nothing is copied. UsageError unless ``can_truncate``."""
        if 0 <= tokens <= self.cached and not self.can_truncate(tokens):
            raise UsageError(
                f"the cache no longer has what it had after {tokens} tokens: a sliding window has moved on, a layer "
                "keeps its last row only, or they are part of a prompt whose tokens see each other; start from an "
                "empty context instead"
            )
        self.sequence.truncate(tokens)

    def reset(self) -> None:
        """Forget everything."""
        self.sequence.truncate(0)

    def checked(self, ids: I64) -> I64:
        """Return ids as a contiguous [S]; UsageError for another shape, ContextError when they do not fit."""
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"token ids of shape {list(ids.shape)}, wanted [S] with at least one")
        if self.cached + len(ids) > self.capacity:
            raise ContextError(
                f"{self.cached} cached and {len(ids)} new tokens do not fit a context of {self.capacity}; "
                "shorten the text" + longer(self.capacity, self.backend.program.context_length)
            )
        return ids

    @contextmanager
    def _slot_for_each_depth(self, new: int) -> Iterator[None]:
        """Give each depth a slot while a prompt of ``new`` tokens runs, where one slot serves all depths of a model
        that was trained with more. The last depth's rows stay."""
        kept, lanes, slot = self.cache, self._lanes, self.cache_sequence
        with slot_for_each_depth(self.backend, kept, slot, self.sequence, new, slot) as wide:
            if wide is not None:
                self.cache, self._lanes = wide, SequenceLanes(wide, slot, self.backend.program.depths)
            try:
                yield
            finally:
                self.cache, self._lanes = kept, lanes
