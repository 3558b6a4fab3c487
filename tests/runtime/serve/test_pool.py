"""Prompts that go on behind what a sequence holds: the answers of a lone run, and how many tokens were prefilled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

WARM = SamplingOptions(temperature=1.2, seed=4)
PROMPT = list(range(5, 14))
OTHER = list(range(40, 50))


@pytest.fixture
def bundle(text_bundle: Callable[..., Path]) -> Path:
    return text_bundle()


def alone(bundle: Path, prompt: list[int], tokens: int, **options: str) -> tuple[int, ...]:
    with Session.open(bundle, engine="reference", **options) as session:
        return tuple(step.token for step in session.generate(prompt, tokens, WARM))


def converse(
    server: BatchServer, bundle: Path, turns: int, prompt: list[int] = PROMPT, **options: str
) -> list[int]:
    """Turns of a conversation, each compared with its lone run → how many tokens of each prompt were reused."""
    ids, reused = list(prompt), []
    for turn in range(turns):
        completion = server.submit(ids, 5, WARM).result(30)
        assert completion.tokens == alone(bundle, ids, 5, **options)
        reused.append(completion.reused)
        ids += [*completion.tokens, 20 + turn, 30]
    return reused


def test_a_conversation_prefills_what_is_new(bundle: Path):
    with BatchServer.open(bundle, engine="reference", sequences=2, reuse=True) as server:
        # All but the last token of each answer was run.
        assert converse(server, bundle, 4) == [0, 13, 20, 27]
        assert server.pool.prompt_tokens - server.pool.reused_tokens == 9 + 3 * 3
        assert server.submit(OTHER, 3).result(30).reused == 0  # in the other sequence
        assert converse(server, bundle, 1, [*PROMPT, 1]) == [9]


def test_conversations_keep_their_sequences_while_there_is_room(bundle: Path):
    with BatchServer.open(bundle, engine="reference", sequences=3, reuse=True) as server:
        first, second = list(PROMPT), list(OTHER)
        for turn in range(3):
            for ids in (first, second):
                completion = server.submit(ids, 4).result(30)
                assert (completion.reused > 0) == (turn > 0)
                ids += [*completion.tokens, turn]
        for start in (
            60,
            70,
        ):  # a third one takes the empty place, a fourth that of the one that was left first
            assert server.submit([start, start + 1, start + 2], 2).result(30).reused == 0
        assert server.submit(second, 2).result(30).reused > 10
        assert server.submit(first, 2).result(30).reused == 0


@pytest.mark.parametrize("copies", [True, False])
def test_prompts_that_begin_alike(bundle: Path, monkeypatch: pytest.MonkeyPatch, copies: bool):
    """Each goes on behind a copy of the part in common, where rows can be copied: the first conversation stays."""
    changed = dataclasses.replace(ReferenceBackend.can, host_rows=copies)
    monkeypatch.setattr(ReferenceBackend, "can", changed)
    with BatchServer.open(bundle, engine="reference", sequences=3, reuse=True) as server:
        first = server.submit(PROMPT, 4).result(30)
        for last in (1, 2):
            completion = server.submit([*PROMPT, last], 4, WARM).result(30)
            assert completion.reused == 9
            assert completion.tokens == alone(bundle, [*PROMPT, last], 4)
        again = server.submit([*PROMPT, *first.tokens, 3], 4, WARM).result(30)
        assert again.reused == (12 if copies else 9)
        assert again.tokens == alone(bundle, [*PROMPT, *first.tokens, 3], 4)


def test_a_running_request_lends_its_prompt(bundle: Path):
    with BatchServer.open(bundle, engine="reference", sequences=2, reuse=True) as server:
        long = server.submit(PROMPT, 50, WARM)
        next(iter(long))
        beside = server.submit([*PROMPT, 1], 4, WARM)
        assert beside.result(30).tokens == alone(bundle, [*PROMPT, 1], 4)
        assert beside.reused == 9
        assert long.result(30).tokens == alone(bundle, PROMPT, 50)


@pytest.mark.parametrize(
    ("skipped_kv", "reused"),
    [("exact", [0, 13, 20]), ("propagate", [0, 9, 16]), ("skip", [0, 9, 16]), ("latest", [0, 9, 16])],
)
def test_exit_rules(bundle: Path, skipped_kv: str, reused: list[int]):
    """A prompt runs at full depth. An answer's K and V are those of full depth where they are made exactly."""
    options = {"exit": "latent:0.5", "skipped_kv": skipped_kv}
    with BatchServer.open(bundle, engine="reference", sequences=2, reuse=True, **options) as server:
        assert converse(server, bundle, 3, **options) == reused


def test_a_sliding_window_that_has_moved_holds_no_beginning(
    text_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)
    bundle = text_bundle(sliding_window=5)
    with BatchServer.open(bundle, engine="reference", sequences=2, reuse=True) as server:
        assert converse(server, bundle, 3) == [0, 13, 20]  # it goes on where it ended
        found = server.submit([*PROMPT, 1], 4, WARM).result(30)
        assert (found.reused, found.tokens) == (0, alone(bundle, [*PROMPT, 1], 4))


def test_what_was_cancelled_can_be_gone_on_from(bundle: Path):
    for options in ({}, {"exit": "latent:0.5", "skipped_kv": "exact"}):
        with BatchServer.open(bundle, engine="reference", sequences=1, reuse=True, **options) as server:
            handle = server.submit(PROMPT, 50, WARM)
            for step, _ in zip(handle, range(4), strict=False):
                assert step.finish is None
            handle.cancel()
            tokens = handle.result(30).tokens
            ids = [*PROMPT, *tokens, 8]
            found = server.submit(ids, 6, WARM).result(30)
            assert found.reused >= len(PROMPT)
            assert found.tokens == alone(bundle, ids, 6, **options)


def test_one_slot_for_all_depths_starts_anew(bundle: Path):
    """A prompt behind other tokens sees their last depth's K and V only, so it is another text than a lone prompt."""
    with BatchServer.open(bundle, engine="reference", sequences=2, reuse=True, kv="last") as server:
        assert converse(server, bundle, 3, kv="last") == [0, 0, 0]
        cancelled = server.submit(list(range(1, 60)), 4)
        cancelled.cancel()
        assert converse(server, bundle, 1, [*PROMPT, 1], kv="last") == [0]


def test_what_failed_is_forgotten(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    with BatchServer.open(bundle, engine="reference", sequences=1, reuse=True) as server:
        epilogue = server.scheduler.backend.epilogue
        monkeypatch.setattr(
            server.scheduler.backend, "epilogue", lambda *call: np.full_like(epilogue(*call), np.nan)
        )
        with pytest.raises(Exception, match="hold NaN"):
            server.submit(PROMPT, 4).result(30)
        monkeypatch.undo()
        assert server.submit([*PROMPT, 1], 4).result(30).reused == 0


@pytest.mark.parametrize("exact", [True, False])
def test_by_default_only_a_row_exact_engine_reuses(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
):
    changed = dataclasses.replace(ReferenceBackend.can, row_exact=exact)
    monkeypatch.setattr(ReferenceBackend, "can", changed)
    with BatchServer.open(bundle, engine="reference", sequences=2) as server:
        assert (max(converse(server, bundle, 3)) > 0) == exact
