"""Continuous depth-wise batching: the driver that puts the calls of many sequences into few engine calls.

Stage by stage, a tick makes one engine call a stage for all sequences whose next stage call is of it, whatever their
depth: lanes are (sequence, depth) pairs (Relaxed Recursive Transformers, arXiv 2410.20672, section 3.8). An engine that
runs whole tokens runs one of each sequence in one call a tick, and does the same within. Sequences come and go between
ticks. A sequence has one call pending at a time, so one lane at most in each engine call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter_ns
from typing import Any

import numpy as np

from ..decode.sampling import SamplingOptions
from ..decode.sequence import TokenSequence
from ..decode.skipped_kv import copy_to_deeper
from ..decode.stage_call import BLOCK, COPY, EPILOGUE, FILL, PROLOGUE, WHOLE, StageCall
from ..decode.whole_tokens import sequence_state, token_state
from ..engines.backend import Backend, runs_tokens
from ..engines.kv import KVCache
from ..engines.tokens import TokenBatch, TokenDecoder, TokenMode
from .packed_calls import PackedCalls
from .prefill import PrefillShare
from .tasks import PendingCall, Task, TextCall, TokenCall

NARROW = 16
"""Stage calls of tokens that decode with at most so many rows run in every tick. Wider ones and those of prompts take
turns, since all others wait for them."""
STAGES = (PROLOGUE, FILL, BLOCK, EPILOGUE)
_WITHIN = (FILL, BLOCK, EPILOGUE)
"""Stages that a chunk of a prompt does not begin with."""
_NO_LOGITS = np.empty((0, 0), np.float32)


class Scheduler:
    """Runs tasks on the sequences of one cache. For one thread."""

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        sequences: int,
        *,
        aligned: bool = False,
        max_stall: float | None = None,
        mode: TokenMode | None = None,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        """``aligned``: decode steps start together. It pays where all tokens run the same depths: one prologue and one
        epilogue call then serve all sequences, and a new one waits for less than a token's time. ``max_stall``: as in
        ``PrefillShare``. ``mode``: how an engine that runs whole tokens runs them. ``clock``: nanoseconds."""
        self.backend, self.cache, self.sequences, self.aligned = backend, cache, sequences, aligned
        self.share = PrefillShare(backend.program.depths, max_stall)
        self._clock = clock
        self.tasks: list[Task] = []
        self.ticks = self.engine_ns = self.total_ns = 0
        """Ticks so far, nanoseconds inside the engine's calls, and in all."""
        self.calls = self.rows = 0
        """Block calls of stages and of whole tokens so far, and the rows in them."""
        self._pending: dict[str, list[PendingCall]] = {stage: [] for stage in (WHOLE, *STAGES)}
        self._tokens: list[tuple[Task, TokenCall]] = []
        self._token_ns = 0
        """What a tick without prompts took last."""
        self._packed = PackedCalls(backend, cache, sequences)
        self._decoders: list[TokenDecoder] = []
        self._batch: TokenBatch | None = None
        if mode is not None and runs_tokens(backend):
            self._decoders = [backend.token_decoder(mode, cache, number) for number in range(sequences)]
            self._batch = backend.token_batch(cache)

    def chunk(self) -> int:
        """Return the most tokens of a prefill chunk that starts now."""
        return self.share.tokens(alone=len(self.tasks) <= 1)

    def slot_for_each_depth(
        self, sequence: int, tokens: TokenSequence, new: int
    ) -> AbstractContextManager[None]:
        """Give ``sequence`` a slot a depth while its prompt of ``new`` tokens runs, where the cache has fewer."""
        return self._packed.slot_for_each_depth(sequence, tokens, new)

    @contextmanager
    def whole_tokens(
        self, sequence: int, tokens: TokenSequence, by: SamplingOptions | None
    ) -> Iterator[TokenCall | None]:
        """Let the engine run whole tokens of ``sequence`` behind what it holds: a call to yield for each; None where
        the host runs them stage by stage.

        ``by``: how the engine chooses tokens; None: the host does. Afterwards ``tokens`` knows what was run.
        """
        if self._batch is None:
            yield None
            return
        decoder = self._decoders[sequence]
        decoder.write(token_state(tokens))
        if by is not None:
            decoder.choose_by(by)
        try:
            ends = tuple(self.backend.program.eos_token_ids)
            yield TokenCall(decoder, "host" if by is None else "decoder", ends)
        finally:
            tokens.restore(sequence_state(decoder.read(), bool(tokens.layout.held), tokens.prefix))

    def add(self, task: Task) -> None:
        """Start a task, on a sequence that no other task uses."""
        task.served = self.ticks
        self.tasks.append(task)
        self._send(task, None)

    def remove(self, task: Task) -> StageCall | None:
        """End a task wherever it is → its pending stage call, which will not run; None if it has none."""
        if task not in self.tasks:
            return None
        self.tasks.remove(task)
        left = None
        for pending in self._pending.values():
            for owner, call in pending:
                left = call if owner is task else left
            pending[:] = [each for each in pending if each[0] is not task]
        self._tokens = [each for each in self._tokens if each[0] is not task]
        task.calls.close()
        return left

    def tick(self) -> None:
        """Run whole tokens of all sequences that want one, and one engine call a stage for pending stage calls; prompts
        as far as it is their turn."""
        begin = self._clock()
        self.ticks += 1
        pending = self._pending
        turns = self._turns()
        if self._batch is not None:
            self._run_whole(self._batch, turns)
        midway = self.aligned and any(not _takes_turns(*each) for stage in _WITHIN for each in pending[stage])
        for stage in STAGES:
            if not (ready := pending[stage]):
                continue
            pending[stage] = []
            together: list[PendingCall] = []
            alone: list[PendingCall] = []
            for each in ready:
                if _takes_turns(*each):
                    (alone if each[0] in turns else pending[stage]).append(each)
                elif midway and stage == PROLOGUE:
                    pending[stage].append(each)
                else:
                    together.append(each)
            for each in alone:
                self._run_chunk(*each)
            for group in self._packed.groups(stage, together):
                self._run(stage, group)
        self.total_ns += self._clock() - begin

    def _turns(self) -> set[Task]:
        """Return the tasks that have their turn in this tick: those that have waited longest, the first of them and as
        many more as a tick has room for."""
        wanting = [each for pending in self._pending.values() for each in pending if _takes_turns(*each)]
        if not wanting:
            return set()
        wanting.sort(key=lambda each: each[0].served)
        room, turns = self.chunk(), set[Task]()
        for task, call in wanting:
            room -= len(call.rows)
            if turns and room < 0:
                break
            turns.add(task)
            task.served = self.ticks
        return turns

    def _run_whole(self, batch: TokenBatch, turns: set[Task]) -> None:
        """Run a whole token of each sequence that wants one, and beside them the chunks whose turn it is; without these
        as many tokens as come within a few milliseconds."""
        calls: list[tuple[Task, TokenCall | TextCall]] = [*self._tokens]
        texts = [each for each in self._pending[WHOLE] if each[0] in turns] if turns else []
        if not (calls or texts):
            return
        self._tokens = []
        for each in texts:
            self._pending[WHOLE].remove(each)
            calls.append((each[0], self._text(*each)))
        start = self._clock()
        turned = batch.next([call for _, call in calls], several=not turns)
        spent = self._clock() - start
        self.engine_ns += spent
        if texts:
            self.share.took(WHOLE, sum(len(call.rows) for _, call in texts), max(spent - self._token_ns, 1))
        else:
            self._token_ns = spent // batch.ticks
        self.calls += batch.calls
        self.rows += batch.rows
        for (task, call), found in zip(calls, turned, strict=True):
            if found.error is not None:
                self._end(task, found.error)
            elif isinstance(call, TokenCall):
                self._send(task, found)
            else:
                self._send(task, _NO_LOGITS if found.logits is None else found.logits[None])

    def _text(self, task: Task, call: StageCall) -> TextCall:
        """Return ``call``, a chunk, as a turn of the sequence's decoder, which knows what the sequence holds."""
        decoder = self._decoders[task.sequence]
        decoder.write(token_state(task.tokens))
        return TextCall(decoder, "host" if call.reads else "nobody", call.rows)

    def _run_chunk(self, task: Task, call: StageCall) -> None:
        """Run a call that had its turn. Beside whole tokens, which pass all stages in a tick, so do chunks."""
        self._run(call.stage, [(task, call)])
        while self._batch is not None and (further := self._within(task)) is not None:
            self._run(further.stage, [(task, further)])

    def _within(self, task: Task) -> StageCall | None:
        """Take out the pending call of ``task``, of a chunk that has begun."""
        for stage in _WITHIN:
            for i, (owner, call) in enumerate(self._pending[stage]):
                if owner is task and task.prompt:
                    del self._pending[stage][i]
                    return call
        return None

    def _run(self, stage: str, group: list[PendingCall]) -> None:
        """Run ``group`` as one engine call, and send each its part of the answer.

        An error ends what it is about: of several, each runs alone then, and those end that fail again.
        """
        counts = [len(call.rows) for _, call in group]
        start = self._clock()
        try:
            found = self._packed.run(stage, group)
        except Exception as error:
            if len(group) == 1:
                self._end(group[0][0], error)
                return
            for each in group:
                self._run(stage, [each])
            return
        spent = self._clock() - start
        self.engine_ns += spent
        if group[0][0].prompt:
            self.share.took(stage, sum(counts), spent)
        if stage == BLOCK:
            self.calls += 1
            self.rows += sum(counts)
        at = 0
        for (task, _), n in zip(group, counts, strict=True):
            step = 1 if stage == EPILOGUE else n
            self._send(task, found[at : at + step])
            at += step

    def _send(self, task: Task, answer: Any) -> None:
        """Give a task its answer, and note its next call. An error of its own ends this task only."""
        try:
            call = next(task.calls) if answer is None else task.calls.send(answer)
            if isinstance(call, TokenCall):
                self._tokens.append((task, call))
                return
            while call.stage == COPY:
                copy_to_deeper(call, self.cache, task.sequence, self.backend.program.depths)
                call = task.calls.send(call.rows)
                assert isinstance(call, StageCall)
        except StopIteration:
            self._end(task, None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library is no Exception
            self._end(task, error)
        else:
            self._pending[call.stage].append((task, call))

    def _end(self, task: Task, error: BaseException | None) -> None:
        """End a task that has come to its end, or failed."""
        self.tasks.remove(task)
        task.calls.close()
        task.ended(error)


def _takes_turns(task: Task, call: StageCall) -> bool:
    """Whether a call runs when it is its task's turn; all others run in every tick."""
    return task.prompt or len(call.rows) > NARROW
