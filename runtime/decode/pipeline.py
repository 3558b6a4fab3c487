"""The driver with drafts: a token's deeper depths and the next tokens' shallower ones share one read of the block.

Each token in flight is a ``TokenSequence.step``, a generator of stage calls, whatever the exit rule, the router, the KV
layout and the policy for skipped K/V. A pass makes one block call with a lane for each of them, and reads out some
of them. The token that a shallow depth predicts is fed at once, as a draft. A token that is final confirms the draft
behind it or refutes it, and a refuted draft is taken back with all that follow it: only lengths change.

Final tokens depend on final tokens only: the rows before a token's own in a depth's slot are those of the tokens before
it; and layers after the loop that keep K/V take the tokens in flight as one lane, oldest first, and answer a token
only once all before it are final.
"""

from __future__ import annotations

from time import perf_counter_ns

import numpy as np

from ..engines.backend import F32, I64
from ..errors import UsageError
from .draft_control import DraftController
from .pass_runner import NO_READS, PassRunner, TokenInFlight
from .sampling import Choose
from .sequential import SequentialDecoder

NONE = -1
"""No draft."""


class Pipeline:
    """Decodes token by token with drafts, on the sequence of a SequentialDecoder, which runs the prompts.

    ``cancel`` has to be called before the decoder is used while drafts are in flight, ``begin`` after each prompt.
    """

    def __init__(self, decoder: SequentialDecoder, draft: Choose, controller: DraftController) -> None:
        """``draft`` chooses from logits of tokens that are not final. The caller chooses from final ones, with
        ``DraftController.timed``."""
        self.decoder, self.controller, self.draft = decoder, controller, draft
        program = decoder.backend.program
        self.depth = program.depths
        """Depths that the last token ran."""
        decoder.whole_tokens = False
        self.sequence = decoder.sequence
        self._depths = program.depths
        # At neighbouring positions, the oldest first; the newest final token; what the last pass read out.
        self._flight: list[TokenInFlight] = []
        self._last: TokenInFlight | None = None
        self._reads = NO_READS
        self._ids = np.zeros(decoder.capacity + program.depths + 1, np.int64)
        self._runner = PassRunner(decoder)

    def begin(self, ids: I64) -> None:
        """Decode behind a prompt that the decoder has run, whose last tokens are ids [S]."""
        decoder = self.decoder
        if self.sequence is not decoder.sequence:
            self._flight.clear()  # of a sequence that the decoder has given up
            self.sequence = decoder.sequence
        if self._flight:
            raise UsageError("a prompt was run while drafts were in flight; cancel them first")
        self._last, self._reads = None, NO_READS
        self._ids[decoder.cached - len(ids) : decoder.cached] = ids

    def cancel(self) -> None:
        """Take back all drafts, so that the decoder's sequence holds final tokens only."""
        self._take_back(0)
        self._last, self._reads = None, NO_READS

    def step(self, token: int) -> F32:
        """Run the final ``token`` → its logits [1, V], valid until the next call; ``depth``: the depths that it ran."""
        begin = since = perf_counter_ns()
        decoder, flight, sequence = self.decoder, self._flight, self.sequence
        clock, controller = decoder.clock, self.controller
        position = sequence.cached
        confirmed = bool(flight) and flight[0].id == token
        self._count_prediction(token, confirmed)
        if not confirmed:
            self._take_back(0)
            if controller.plan.depth == self._depths - 1 or not self._can_take_back(position):
                return self._step_alone(token, begin)
            if position >= decoder.capacity:
                decoder.checked(np.array([token], np.int64))
            self._feed(token, position)
        first = flight[0]
        while first.call is not None:
            since = self._pass(since)
        del flight[0]
        self._last = first
        sequence.cached = position + 1
        clock.tokens += 1
        spent = perf_counter_ns() - begin
        clock.total_ns += spent
        controller.took(spent)
        controller.token()
        self.depth = first.ran
        return first.logits

    def _step_alone(self, token: int, begin: int) -> F32:
        """Run a token sequentially: the plan drafts nothing, or its rows move a sliding window."""
        decoder = self.decoder
        logits = decoder.step(token)
        self._ids[decoder.cached - 1] = token
        self._last, self.depth = None, decoder.depth
        self.controller.alone(perf_counter_ns() - begin)
        self.controller.token()
        return logits

    def _feed(self, token: int, position: int) -> None:
        self._ids[position] = token
        self._flight.append(TokenInFlight(token, position, self.sequence.step(token, position)))

    def _count_prediction(self, token: int, confirmed: bool) -> None:
        """Count which depths predicted the final ``token``, and whether it had been fed as a draft."""
        if self._last is not None:
            for depth, predicted in self._last.predicted:
                self.controller.saw(depth, predicted == token)
        if self._flight:
            clock = self.decoder.clock
            clock.drafts += 1
            clock.accepted += confirmed

    def _can_take_back(self, position: int) -> bool:
        """Return whether a token at ``position`` can be forgotten again: not where its rows move a sliding window."""
        cache, layout = self.decoder.cache, self.sequence.layout
        if not cache.can_truncate(position + 1, position):
            return False
        if cache.window is None:
            return True
        # Slots get rows of the other tokens in flight as well, and of those that wait.
        more = len(self._flight) + 1
        return all(cache.can_truncate(n + more if layout.held else position + 1, n) for n in layout.filled)

    def _take_back(self, first: int) -> None:
        """Forget the tokens in flight from the ``first`` on."""
        dropped = self._flight[first:]
        if not dropped:
            return
        del self._flight[first:]
        for token in dropped:
            token.calls.close()
        pending = [token.call for token in dropped if token.call is not None]
        self.sequence.take_back(dropped[0].position, pending)

    def _next_draft(self) -> int:
        """Compare the last pass's predictions with what was fed → the token to feed behind them, or NONE.

        From the oldest token on, the first prediction that differs from the draft at its position replaces that draft
        and all behind it. If none differs, the newest token's prediction is the next draft.
        """
        flight = self._flight
        oldest = flight[0].position
        reads = self._reads
        for token, row in reads.tokens:
            index = token.position - oldest
            if not 0 <= index < len(flight) or flight[index] is not token:  # final meanwhile, or taken back
                continue
            after = token.position + 1
            predicted = self.draft(reads.logits[row], self._ids[:after], after)
            token.predicted.append((token.depth, predicted))
            if index + 1 < len(flight):
                if flight[index + 1].id == predicted:
                    continue
                self._take_back(index + 1)
            return predicted if self._may_draft(after) else NONE
        return NONE

    def _may_draft(self, position: int) -> bool:
        """Return whether the plan drafts, and a draft at ``position`` has room and can be taken back."""
        sequence = self.sequence
        return (
            self.controller.plan.depth < self._depths - 1
            and position < self.decoder.capacity
            and len(self._flight) <= self._depths
            and not (
                sequence.rule.exits_early and sequence.skipped.overdue
            )  # they catch up when nothing is in flight
            and self._can_take_back(position)
        )

    def _pass(self, since: int) -> int:
        """Run one depth for every token in flight, in one block call, after the next draft → the time at its end.

        ``since``: when the work of this pass began. Both as ``perf_counter_ns``.
        """
        flight, controller = self._flight, self.controller
        if self._reads.tokens:
            draft = self._next_draft()
            if draft != NONE:
                self._feed(draft, flight[-1].position + 1)
        lanes, block_ns = self._runner.run_depth(flight)
        reads = self._reads = self._runner.read(flight, controller.plan)
        self.decoder.clock.passes += 1
        end = perf_counter_ns()
        if (
            lanes and not self.sequence.rule.exits_early
        ):  # else a token's cost does not follow from that of passes
            controller.passed(lanes, block_ns, reads.rows, reads.engine_ns, end - since)
        return end
