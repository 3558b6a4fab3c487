"""Contexts that grow, go back, fork and are saved, under every policy: the tokens of one that was never touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import SessionError
from edgeloop.runtime.session import Session

F32 = npt.NDArray[np.float32]
IDS: list[int] = np.random.default_rng(3).integers(0, 90, 60).tolist()
POLICIES: dict[str, tuple[str, dict[str, str]]] = {
    "full depth": ("edgeloop", {}),
    "a slot a depth, one kept": ("ouro", {"kv": "last"}),
    "exact": ("edgeloop", {"exit": "latent:0.9", "skipped_kv": "exact"}),
    "exact, all leave": ("mor-norms", {"exit": "depth:1", "skipped_kv": "exact"}),
    "propagate": ("edgeloop", {"exit": "entropy:4.4", "skipped_kv": "propagate"}),
    "latest": ("edgeloop", {"exit": "latent:0.9", "skipped_kv": "latest"}),
    "skip": ("edgeloop", {"exit": "latent:0.9", "skipped_kv": "skip"}),
    "shared": ("edgeloop-shared", {}),
    "shared, leaving": ("edgeloop-shared", {"exit": "latent:0.9"}),
    "window": ("edgeloop-window", {}),
    "window, exact": ("edgeloop-window", {"exit": "latent:0.9", "skipped_kv": "exact"}),
    "window, skip": ("edgeloop-window", {"exit": "latent:0.9", "skipped_kv": "skip"}),
    "expert choice": ("mor-expert", {}),
    "token choice": ("mor-token", {}),
    "routed and shared": ("mor-expert-shared", {}),
    "a whole text": ("mor-expert", {"exit": "chunk-topk"}),
    "drafts": ("edgeloop", {"decode": "pipelined"}),
    "drafts that leave": ("edgeloop", {"decode": "pipelined", "exit": "latent:0.9", "skipped_kv": "exact"}),
    "drafts, skip": ("edgeloop", {"decode": "pipelined", "exit": "depth:2", "skipped_kv": "skip"}),
}
REBUILT = frozenset(POLICIES) - {
    "a slot a depth, one kept",
    "propagate",
    "latest",
    "skip",
    "shared, leaving",
    "window, skip",
    "a whole text",
    "drafts, skip",
}
"""Policies under which an answer's tokens leave what a prompt's would."""
policies = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def opened(exported: Callable[..., Path]) -> Iterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def get(kind: str, quant: str = "none", **options: Any) -> Session:
        sessions.append(Session.open(exported(kind, quant), **{"engine": "onnx", **options}))
        return sessions[-1]

    yield get
    for session in sessions:
        session.close()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that have to grow within a few tokens, and windows that move on."""
    monkeypatch.setattr("edgeloop.runtime.context.context.CACHE_STEP", 8)
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)


def logits(session: Session) -> F32:
    """Behind the context's last token."""
    return session._use_context().prefill()[0][-1].copy()


def tokens(session: Session, count: int, **options: Any) -> list[int]:
    return [step.token for step in session.generate(max_tokens=count, **options)]


def near(found: F32, wanted: F32, bound: float = 1e-4) -> bool:
    return bool(np.abs(found - wanted).max() <= bound * np.abs(wanted).max())


@policies
def test_a_grown_context_is_a_rebuilt_one(opened: Callable[..., Session], policy: str) -> None:
    """Texts one after the other, and one text."""
    kind, options = POLICIES[policy]
    session = opened(kind, **options)
    for piece in (IDS[:9], IDS[9:10], IDS[10:31], IDS[31:40]):
        session.append(piece)
        found = logits(session)
    assert session.ids == IDS[:40]
    again = opened(kind, **options)
    again.append(IDS[:40])
    assert near(found, logits(again))


@policies
def test_an_answer_that_goes_on_is_one_answer(opened: Callable[..., Session], policy: str) -> None:
    kind, options = POLICIES[policy]
    session = opened(kind, **options)
    sampling = SamplingOptions(temperature=1.5, seed=4)
    wanted = [step.token for step in session.generate(IDS[:20], 12, sampling)]
    assert len(set(wanted)) > 3
    session.reset()
    session.append(IDS[:20])
    first = tokens(session, 1, sampling=sampling)
    assert first + [token for count in (5, 6) for token in tokens(session, count)] == wanted
    assert session.ids == IDS[:20] + wanted


def conversation(session: Session, between: Callable[[Session], Session]) -> tuple[list[int], F32]:
    """Texts and answers in turn → tokens and the logits behind; ``between``: what is done before each turn."""
    session.reset()
    for start in (0, 20, 27):
        session = between(session)
        session.append(IDS[start : start + 7])
        tokens(session, 5, sampling=SamplingOptions(temperature=1.5, seed=start))
    session = between(session)
    session.append(IDS[40:43])
    return session.ids, logits(session)


def untouched(session: Session) -> Session:
    return session


def gone_too_far(session: Session) -> Session:
    """It goes on, and back again."""
    before = session.ids
    if before:
        tokens(session, 3)
        session.append(IDS[50:55])
        tokens(session, 2)
        session.truncate(len(before))
        assert session.ids == before
    return session


def forked(session: Session) -> Session:
    """Two go on from here, and the one that is left goes another way meanwhile."""
    other = session.fork()
    session.append(IDS[50:59])
    tokens(session, 4)
    return other


def saved(session: Session, folder: Path) -> Session:
    file = folder / "context.session"
    session.save(file)
    before = session.ids
    session.append(IDS[50:59])
    tokens(session, 4)
    session.restore(file)
    assert session.ids == before
    return session


def used_for_something_else(session: Session) -> Session:
    """Tokens stay, and have to be run again."""
    session.logits(IDS[:30])
    return session


@policies
@pytest.mark.parametrize("engine", ["onnx", "reference", "native"])
def test_what_is_done_between_turns_leaves_no_trace(
    opened: Callable[..., Session], lane_engine: Path, tmp_path: Path, policy: str, engine: str
) -> None:
    """Not a bit of one where the engine is exact."""
    kind, options = POLICIES[policy]
    session = opened(kind, engine=engine, **options)
    bound = 0.0 if session.backend is not None and session.backend.can.row_exact else 1e-4
    ids, wanted = conversation(session, untouched)
    assert len(ids) == 39
    # What a window has moved out is run again, at full depth: where tokens had left, others come then.
    replayed = "window" in policy and "exit" in options
    ways = [] if replayed else [gone_too_far]
    for way in (*ways, forked, lambda session: saved(session, tmp_path)):
        found, last = conversation(session, way)
        assert found == ids
        assert near(last, wanted, bound)
    if policy in REBUILT:
        # Routers are the host's, whose numbers depend on how many tokens there are.
        found, last = conversation(session, used_for_something_else)
        assert found == ids
        assert near(last, wanted, 1e-4 if session.program.routing else bound)


@pytest.mark.parametrize("policy", ["full depth", "exact", "drafts", "drafts that leave", "drafts, skip"])
@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_forks_take_turns(
    opened: Callable[..., Session], lane_engine: Path, policy: str, engine: str
) -> None:
    """A token each, on one engine: nobody's state is another's."""
    kind, options = POLICIES[policy]
    session = opened(kind, engine=engine, **options)
    session.reset()
    session.append(IDS[:20])
    tokens(session, 3)
    forks = [session.fork() for _ in range(3)]
    for i, fork in enumerate(forks):
        fork.append(IDS[20 + i : 25])
    options_of = [SamplingOptions(temperature=1.5, seed=seed) for seed in range(3)]
    wanted = [tokens(fork.fork(), 9, sampling=each) for fork, each in zip(forks, options_of, strict=True)]
    answers = [fork.generate(None, 9, each) for fork, each in zip(forks, options_of, strict=True)]
    rounds = list(zip(*answers, strict=True))
    assert [[steps[i].token for steps in rounds] for i in range(3)] == wanted
    assert len({tuple(each) for each in wanted}) == 3


def grown_and_rebuilt(path: Path, **options: Any) -> float:
    """The largest difference of logits behind contexts that grew in several ways, relative to the largest logit."""
    with Session.open(path, **options) as session:
        differences = []
        for pieces in ([9, 1, 21, 9], [1] * 40, [39, 1], [3, 37]):
            session.reset()
            for piece in pieces:
                session.append(IDS[len(session.ids) : len(session.ids) + piece])
                found = logits(session)
            session.reset()
            session.append(IDS[:40])
            wanted = logits(session)
            differences.append(float(np.abs(found - wanted).max() / np.abs(wanted).max()))
        exact = session.backend is not None and session.backend.can.row_exact
    assert not (exact and max(differences))
    return max(differences)


@pytest.mark.parametrize("kind", ["edgeloop", "mor-norms"])
@pytest.mark.parametrize(("quant", "bound"), [("none", 1e-5), ("int8", 0.03), ("int4", 0.03)])
def test_how_far_grown_contexts_are_from_rebuilt_ones(
    exported: Callable[..., Path], kind: str, quant: str, bound: float
) -> None:
    assert grown_and_rebuilt(exported(kind, quant), engine="onnx") < bound


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_the_lane_engine_has_the_same_bits(
    exported: Callable[..., Path], lane_engine: Path, quant: str
) -> None:
    for options in ({}, {"kv_bits": 16}, {"kv_bits": 8}, {"kv_bits": 4}, {"threads": 1}):
        assert grown_and_rebuilt(exported("mor-norms", quant), engine="native", **options) == 0


def test_states_of_a_package(packaged: Callable[..., Bundle], tmp_path: Path) -> None:
    path = packaged("mor-middle-cycle").folder
    options = {"engine": "coreml-reference", "context": 60}
    assert grown_and_rebuilt(path, **options) < 5e-3
    with Session.open(path, **options) as session:  # type: ignore[arg-type]
        ids, wanted = conversation(session, untouched)
        for way in (forked, lambda session: saved(session, tmp_path)):
            found, last = conversation(session, way)
            assert found == ids
            assert near(last, wanted, 5e-3)


@pytest.mark.parametrize("engine", ["onnx", "reference", "native"])
def test_what_ran_nothing_is_saved(
    exported: Callable[..., Path], lane_engine: Path, tmp_path: Path, engine: str
) -> None:
    """Before there is a cache."""
    path, file = exported("mor-norms", "none"), tmp_path / "a.session"
    for ids in ([], [3, 4, 5]):
        with Session.open(path, engine=engine) as session:
            session.append(ids)
            session.save(file)
        with Session.load(path, file, engine=engine) as session:
            assert session.ids == ids


def test_numbers_of_other_sizes_are_refused(
    exported: Callable[..., Path], lane_engine: Path, tmp_path: Path
) -> None:
    path, file = exported("mor-norms", "none"), tmp_path / "a.session"
    for bits, others in ((16, 32), (8, 16), (32, 8), (4, 8), (32, 4)):
        with Session.open(path, engine="native", kv_bits=bits) as session:
            session.append([3, 4, 5])
            tokens(session, 3)
            session.save(file)
        message = f"K/V in {bits} bits, this engine keeps them in {others}; open it with --kv-bits"
        with pytest.raises(SessionError, match=message):
            Session.load(path, file, engine="native", kv_bits=others)


@pytest.mark.parametrize("kv_bits", [32, 16, 8, 4])
def test_what_was_saved_and_what_was_forked_have_the_same_bits(
    exported: Callable[..., Path], lane_engine: Path, tmp_path: Path, kv_bits: int
) -> None:
    """Rows are stored as the engine keeps them, codes and scales as well."""
    path, file = exported("mor-norms", "int4"), tmp_path / "a.session"
    with Session.open(path, engine="native", kv_bits=kv_bits) as session:
        session.append(IDS[:37])
        tokens(session, 3)
        session.save(file)
        fork = session.fork()
        session.append(IDS[:5])
        wanted = logits(session)
        fork.append(IDS[:5])
        np.testing.assert_array_equal(logits(fork), wanted)
        fork.close()
    with Session.load(path, file, engine="native", kv_bits=kv_bits) as session:
        session.append(IDS[:5])
        np.testing.assert_array_equal(logits(session), wanted)


@pytest.mark.parametrize("engines", [("onnx", "reference"), ("onnx", "native"), ("native", "reference")])
def test_another_engine_goes_on(
    exported: Callable[..., Path], lane_engine: Path, tmp_path: Path, engines: tuple[str, str]
) -> None:
    path, file = exported("edgeloop"), tmp_path / "a.session"
    with Session.open(path, engine=engines[0], exit="latent:0.9") as session:
        session.append(IDS[:20])
        tokens(session, 6)
        session.save(file)
        session.append(IDS[20:25])
        wanted = logits(session)
    with Session.load(path, file, engine=engines[1]) as session:
        session.append(IDS[20:25])
        assert near(logits(session), wanted, 0.05 if "native" in engines else 1e-4)
