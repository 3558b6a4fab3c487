"""A sequence that is lent to its engine, which runs whole tokens of it without the host between their depths.

It is handed over with all that is known of it when the first such token comes, and taken back when it is looked
at: for a prompt, to go back, to save it, to fork it. So a token costs one call, and what holds a sequence is one at a
time.
"""

from __future__ import annotations

from ..engines.backend import Backend, runs_tokens
from ..engines.kv import KVCache
from ..engines.tokens import NO_DRAFTS, Drafting, TokenCounts, TokenDecoder
from ..timing import LoopClock
from .exits import ExitRule
from .routing import RoutingRule
from .sequence import TokenSequence
from .whole_tokens import sequence_state, token_mode, token_state


class Lender:
    """Lends the sequences of one place in a cache, one at a time."""

    def __init__(self, backend: Backend, cache: KVCache, cache_sequence: int, clock: LoopClock) -> None:
        """``clock``: counts what the engine's tokens took, once ``count`` is called."""
        self._backend, self._cache, self._number, self._clock = backend, cache, cache_sequence, clock
        self._sequence: TokenSequence | None = None
        self._rule: ExitRule | RoutingRule | None = None
        self._decoder: TokenDecoder | None = None
        self._counted = _nothing(backend.program.depths)
        self._drafting = NO_DRAFTS
        self._drafted = (0, 0)  # fed and right, as far as they were counted

    def draft(self, drafting: Drafting) -> None:
        """Let the engine draft the tokens that it runs, as ``drafting`` says."""
        if drafting is not self._drafting:
            self._drafting, self._drafted = drafting, (0, 0)
            if self._decoder is not None:
                self._decoder.draft(drafting)

    def lend(self, sequence: TokenSequence) -> TokenDecoder | None:
        """Return what runs the tokens of ``sequence`` from now on; None where the engine cannot (``whole_tokens``)."""
        if sequence is not self._sequence or sequence.rule is not self._rule:
            self._sequence, self._rule, self._decoder = sequence, sequence.rule, self._new_decoder(sequence)
            self._counted, self._drafted = _nothing(sequence.program.depths), (0, 0)
            if self._decoder is not None and self._drafting is not NO_DRAFTS:
                self._decoder.draft(self._drafting)
        if self._decoder is not None:
            self._decoder.write(token_state(sequence))
        return self._decoder

    def take_back(self) -> None:
        """Let the sequence know of all tokens that the engine has run."""
        assert self._sequence is not None
        assert self._decoder is not None
        self.count()
        state, sequence = self._decoder.read(), self._sequence
        sequence.restore(sequence_state(state, bool(sequence.layout.held), sequence.prefix))

    def count(self) -> None:
        """Count what the engine's tokens took since the last time."""
        assert self._decoder is not None
        now, before, clock = self._decoder.counts(), self._counted, self._clock
        self._counted = now
        clock.tokens += now.tokens - before.tokens
        clock.passes += now.tokens - before.tokens
        clock.engine_ns += now.nanoseconds - before.nanoseconds
        clock.block_calls += now.block_calls - before.block_calls
        clock.rows += now.rows - before.rows
        clock.decisions += now.decisions - before.decisions
        clock.decide_ns += now.decide_ns - before.decide_ns
        for depth in range(len(now.calls)):
            clock.block_ns[depth] += now.block_ns[depth] - before.block_ns[depth]
            clock.calls[depth] += now.calls[depth] - before.calls[depth]
        if self._drafting is not NO_DRAFTS:
            found = self._decoder.drafts()
            fed, right = (sum(each) for each in zip(found.looked_up, found.predicted, strict=True))
            clock.drafts += fed - self._drafted[0]
            clock.accepted += right - self._drafted[1]
            self._drafted = fed, right

    def _new_decoder(self, sequence: TokenSequence) -> TokenDecoder | None:
        if not runs_tokens(self._backend) or (mode := token_mode(sequence)) is None:
            return None
        return self._backend.token_decoder(mode, self._cache, self._number)


def _nothing(depths: int) -> TokenCounts:
    return TokenCounts(0, 0, 0, 0, 0, 0, (0,) * depths, (0,) * depths)
