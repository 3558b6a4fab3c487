"""Prompts beside others: how many of their tokens a tick takes, so that nobody who decodes waits for longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.runtime.decode.stage_call import BLOCK, EPILOGUE, PROLOGUE
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.serve.handle import Handle
from edgeloop.runtime.serve.prefill import CHUNK, CHUNK_ALONE, PrefillShare
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

MS = 1_000_000
ROW, CALL = 2 * MS, 5 * MS
"""What a row costs the pretended engine, and a call besides."""


def test_without_a_bound():
    share = PrefillShare(3)
    share.took(BLOCK, 32, 1 << 40)
    assert (share.tokens(alone=True), share.tokens(alone=False)) == (CHUNK_ALONE, CHUNK)


def test_a_bound_is_kept_by_what_was_measured():
    share = PrefillShare(3, 100.0)
    first = share.tokens(alone=False)
    assert 1 <= first < 16
    for stage in (PROLOGUE, BLOCK, EPILOGUE):
        share.took(stage, 10, 10 * MS)  # a row takes 1 ms in each of 5 calls
    assert share.tokens(alone=False) == share.tokens(alone=True) == 20
    share.took(BLOCK, 10, 20 * MS)  # dearer: at once
    assert share.tokens(alone=False) == 12
    share.took(BLOCK, 10, 10 * MS)  # cheaper: not all of it
    assert 12 < share.tokens(alone=False) < 20
    for _ in range(40):
        share.took(BLOCK, 10, 10 * MS)
    assert share.tokens(alone=False) == 19
    share.took(BLOCK, 1, 10_000 * MS)
    assert share.tokens(alone=False) == 1
    for _ in range(200):
        for stage in (PROLOGUE, BLOCK, EPILOGUE):
            share.took(stage, 100, 100)
    assert share.tokens(alone=False) == CHUNK_ALONE


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_a_bound_is_checked(text_bundle: Callable[..., Path], wrong: float):
    with pytest.raises(UsageError, match=r"max_stall is .*, wanted milliseconds above 0"):
        BatchServer.open(text_bundle(), engine="reference", max_stall=wrong)


class Pretended:
    """A clock that goes on by what calls of the engine would take, and what prompts took of it."""

    def __init__(self, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waits = 0, [0]
        scheduler, run = server.scheduler, server.scheduler._packed.run

        def call(stage: str, group: list):  # type: ignore[no-untyped-def, type-arg]
            before = self.now
            found = run(stage, group)
            if any(not task.prompt for task in scheduler.tasks) and group[0][0].prompt:
                self.waits[-1] += self.now - before
            return found

        def timed(name: str) -> None:
            run = getattr(scheduler.backend, name)

            def ran(rows, *rest):  # type: ignore[no-untyped-def]
                self.now += CALL + ROW * len(rows)
                return run(rows, *rest)

            monkeypatch.setattr(scheduler.backend, name, ran)

        for name in ("prologue", "block", "epilogue"):
            timed(name)
        monkeypatch.setattr(scheduler._packed, "run", call)
        monkeypatch.setattr(scheduler, "_clock", lambda: self.now)

        if scheduler._batch is not None:
            self._whole(server, monkeypatch)

    def _whole(self, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same of an engine that runs tokens and chunks together: what chunks add to tokens counts."""
        batch = server.scheduler._batch
        assert batch is not None
        run = batch.next

        def ran(turns, several):  # type: ignore[no-untyped-def]
            rows = sum(len(turn.text) for turn in turns if turn.text is not None)
            tokens = sum(turn.text is None for turn in turns)
            found = run(turns, several)
            self.now += (CALL + ROW * (tokens + rows)) * batch.ticks
            self.waits[-1] += ROW * rows if tokens else 0
            return found

        monkeypatch.setattr(batch, "next", ran)

    def token(self) -> None:
        """Somebody got a token: what prompts take counts from here."""
        self.waits.append(0)


@pytest.mark.parametrize(("engine", "bound"), [("reference", 150.0), ("native", 30.0)])
@pytest.mark.parametrize("prompts", [[60], [14] * 6, [50, 3, 40, 2, 2, 60]], ids=str)
def test_nobody_who_decodes_waits_for_longer(
    text_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[int],
    engine: str,
    bound: float,
):
    """Between two tokens of a request prompts take no more than the bound, whether they are long or many."""
    bundle = text_bundle()
    with BatchServer.open(bundle, engine=engine, sequences=8, max_stall=bound, reuse=False) as server:
        pretended = Pretended(server, monkeypatch)
        decodes = server.submit([5, 6, 7], 55)
        push = decodes.push

        def pushed(step) -> None:  # type: ignore[no-untyped-def]
            pretended.token()
            push(step)
            if decodes.count == 2:
                handles.extend(server.submit(list(range(1, n + 1)), 2) for n in prompts)

        handles: list[Handle] = []
        monkeypatch.setattr(decodes, "push", pushed)
        found = decodes.result(60)
        others = [handle.result(60) for handle in handles]
    assert len(others) == len(prompts)
    assert max(pretended.waits) > 0
    # A chunk of one token more or less: a call costs something whatever is in it.
    assert max(pretended.waits) <= bound * MS
    with Session.open(bundle, engine=engine) as session:
        for n, other in zip(prompts, others, strict=True):
            assert other.tokens == tuple(s.token for s in session.generate(list(range(1, n + 1)), 2))
        assert found.tokens == tuple(s.token for s in session.generate([5, 6, 7], 55))
