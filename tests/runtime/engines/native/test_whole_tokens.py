"""Sessions whose engine runs whole tokens: who lets it, who does not, and contexts that come and go between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mode_models import model, write_bundle

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.native.ahead import Ahead
from edgeloop.runtime.engines.native.decoder import NativeDecoder
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.errors import EngineError
from edgeloop.runtime.session import Session

PROMPT, COUNT = [3, 14, 15, 9, 2], 9
SAMPLED = SamplingOptions(temperature=1.3, seed=5)
POLICIES = (
    ("layers around the loop", {}),
    ("layers around the loop", {"exit": "latent:0.9", "skipped_kv": "exact"}),
    ("layers around the loop", {"exit": "latent:0.9", "skipped_kv": "propagate"}),
    ("layers around the loop", {"exit": "latent:0.9", "skipped_kv": "skip"}),
    ("layers around the loop", {"exit": "depth:2", "skipped_kv": "latest"}),
    ("an exit gate", {"exit": "gate:0.6", "skipped_kv": "exact"}),
    ("a window", {"exit": "latent:0.9", "skipped_kv": "exact"}),
    ("shared K/V", {"exit": "latent:0.9"}),
    ("the row before", {}),
    ("expert choice", {}),
    ("token choice", {}),
    ("layers around the loop", {"decode": "pipelined"}),
    ("an exit gate", {"exit": "gate:0.6", "skipped_kv": "exact", "decode": "pipelined"}),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        name: write_bundle(folder / str(i), model(name), ("native",))
        for i, name in enumerate(dict.fromkeys(name for name, _ in POLICIES))
    }


def opened(bundle: Path, policy: dict[str, str], whole: bool = True) -> Session:
    """``whole``: its engine runs whole tokens; else the host decides between depths."""
    session = Session(Bundle.open(bundle), NativeBackend.open(Bundle.open(bundle), 1), **policy)  # type: ignore[arg-type]
    session._context._make = lambda tokens: made(session, tokens, whole)
    return session


def sessions(bundle: Path, policy: dict[str, str]) -> Iterator[Session]:
    """One of each, closed when the next one comes."""
    for whole in (True, False):
        with opened(bundle, policy, whole) as session:
            yield session


def made(session: Session, tokens: int, whole: bool) -> SequentialDecoder:
    decoder = Session._new_decoder(session, tokens)
    decoder.whole_tokens = whole
    return decoder


def answer(session: Session, *args: Any, **options: Any) -> list[tuple[int, int]]:
    return [(step.token, step.depth) for step in session.generate(*args, **options)]


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize(("name", "policy"), POLICIES)
def test_a_context_comes_and_goes(
    bundles: dict[str, Path], tmp_path: Path, name: str, policy: dict[str, str]
) -> None:
    """Answers go on, are made again, forked, cut short and saved, and are those of the host's decisions."""

    def story(session: Session) -> list[Any]:
        told: list[Any] = [answer(session, PROMPT, COUNT, SAMPLED), answer(session, None, 3)]
        told.append([(step.token, step.depth) for step in session.regenerate(4)])
        with session.fork() as fork:
            told.append(answer(fork, None, 3, SamplingOptions()))
            told.append(answer(session, None, 3, SAMPLED))
            told.append(answer(fork, None, 2, SAMPLED))
        file = tmp_path / "session"
        session.save(file)
        session.truncate(len(PROMPT) + 2)
        told.append(answer(session, None, 3, SAMPLED))
        session.restore(file)
        told.append(answer(session, None, 3, SAMPLED))
        session.append([1, 2])
        steps = session.generate(None, 6, SAMPLED)
        told.append([next(steps).token, next(steps).token])
        told.append(answer(session, None, 2, SAMPLED))
        told.append((session.stats.depths, session.stats.kv_bytes))
        if session.decode == "sequential":  # else it follows from what was drafted
            told.append(session.stats.block_share)
        told.append(session.evaluate([*PROMPT, *range(10)]).perplexity)
        return told

    whole, host = (story(session) for session in sessions(bundles[name], policy))
    assert whole == host


@pytest.mark.usefixtures("lane_engine")
def test_who_lets_the_engine_choose(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled tokens take one call each; what the host has to do, it does on the engine's logits."""
    calls: list[str] = []
    for name in ("prologue", "block", "epilogue", "prompt"):
        real = getattr(NativeBackend, name)

        def counted(self: NativeBackend, *args: Any, real: Any = real, name: str = name) -> Any:
            calls.append(name)
            return real(self, *args)

        monkeypatch.setattr(NativeBackend, name, counted)
    whole, host = [], []
    for found, session in zip(
        (whole, host), sessions(bundles["an exit gate"], {"exit": "gate:0.6"}), strict=True
    ):
        for options in (
            SamplingOptions(),
            SAMPLED,
            SamplingOptions(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1),
            SamplingOptions(logit_bias={3: -5.0}),
            SamplingOptions(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.5),
        ):
            calls.clear()
            found.append(answer(session, PROMPT, COUNT, options))
            assert (calls == ["prompt"]) == (found is whole), calls
        steps = list(session.generate(PROMPT, COUNT, SAMPLED, logprobs=2))
        found.append([(s.token, s.logprobs.logprob, [t.token for t in s.logprobs.top]) for s in steps])
        seen: list[int] = []
        session._context.room(40).observe = lambda depth, state, seen=seen: seen.append(depth)
        found.append(answer(session, PROMPT, COUNT, SAMPLED))
        assert len(seen) > COUNT
    assert whole == host


@pytest.mark.usefixtures("lane_engine")
def test_logits_that_are_not_numbers(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine chooses nothing, and the host says what is wrong."""
    session = opened(bundles["layers around the loop"], {})
    steps = session.generate(PROMPT, COUNT)
    next(steps)
    decoder = session._context.decoder
    assert decoder is not None
    for slot in range(3):
        rows = decoder.cache.read_rows("block", slot, 2, 1)
        decoder.cache.write_rows("block", slot, 2, [(k * float("nan"), v) for k, v in rows])
    with pytest.raises(EngineError, match="the logits for position 6 hold NaN; try engine reference"):
        next(steps)


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize("name", ["layers around the loop", "a window", "the row before"])
def test_tokens_that_are_quick_share_a_call(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """But for those that could not be taken back; and whoever leaves or goes back finds what was asked for alone."""
    monkeypatch.setattr("edgeloop.runtime.engines.native.ahead.BURST_NS", 10**9)
    made: list[int] = []
    real = Ahead.run

    def counted(self: Ahead, token: int) -> int:
        made.append(real(self, token))
        return made[-1]

    monkeypatch.setattr(Ahead, "run", counted)
    wanted = answer(opened(bundles[name], {}, False), PROMPT, 20, SAMPLED)
    session = opened(bundles[name], {})
    assert answer(session, PROMPT, 20, SAMPLED) == wanted
    assert sum(made) == 19
    assert made == ([1] * 19 if name != "layers around the loop" else [1, 18])
    steps = session.generate(PROMPT, 20, SAMPLED)
    assert [next(steps).token for _ in range(5)] == [token for token, _ in wanted[:5]]
    decoder = session._context.decoder
    assert decoder is not None
    assert decoder.cached == decoder.sequence.cached == len(PROMPT) + 4
    assert answer(session, None, 15, SAMPLED) == wanted[5:]


@pytest.mark.usefixtures("lane_engine")
def test_nothing_is_run_ahead_behind_the_end(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeloop.runtime.engines.native.ahead.BURST_NS", 10**9)
    session = opened(bundles["layers around the loop"], {})
    tokens = [token for token, _ in answer(session, PROMPT, 12, SAMPLED)]
    end = tokens.index(tokens[6])
    decoder = session._context.lend(len(PROMPT) + 12)
    for room, wanted in ((11, tokens[1 : end + 1]), (2, tokens[1:3])):
        decoder.reset()
        decoder.prompt(np.array(PROMPT))
        assert decoder.choose_by(SAMPLED, [tokens[6]], room)
        found, token = [], tokens[0]
        for _ in wanted:
            token = decoder.next(token)
            found.append(token)
        assert found == wanted
        native = decoder._lent
        assert isinstance(native, NativeDecoder)
        assert native._ahead.behind == 0
        assert decoder.sequence.cached == len(PROMPT) + len(wanted)


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize(("name", "policy"), POLICIES)
def test_a_call_that_was_interrupted_keeps_the_token_that_it_was_given(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, policy: dict[str, str]
) -> None:
    """Ctrl-C is heard when the library is back, which has run tokens then that nobody was told of."""
    monkeypatch.setattr("edgeloop.runtime.engines.native.ahead.BURST_NS", 10**9)
    stories = []
    for session in sessions(bundles[name], policy):
        steps = session.generate(PROMPT, 12, SAMPLED)
        told = [next(steps).token for _ in range(2)]
        decoder = session._context.decoder
        assert decoder is not None
        native = decoder._lent
        if native is not None:  # the host's decisions are those of the other story
            assert isinstance(native, NativeDecoder)
            real = native._ahead._call

            def interrupted(*arguments: Any, real: Any = real) -> int:
                real(*arguments)
                raise KeyboardInterrupt

            monkeypatch.setattr(native._ahead, "_call", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(steps)
            monkeypatch.setattr(native._ahead, "_call", real)
            assert decoder.cached == len(session.ids)
        session.append([1, 2, 0, 5, 7, 4, 9, 9, 3, 6, 11, 2, 8])
        stories.append((told, answer(session, None, 4, SAMPLED), session.ids))
    assert stories[0] == stories[1]
