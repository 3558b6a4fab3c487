"""A router over depths that share K and V, against a plain torch forward of the authors' equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import routed_forward
import torch

from edgeloop.export.family import Reading
from edgeloop.runtime.decode.routing import RoutingRule
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.transform import sharing_kv
from edgeloop.runtime.session import Session

ENGINES = ("onnx", "reference")
RULES: dict[tuple[str, str], float | None] = {
    ("mor-expert-shared", "chunk-topk"): None,
    ("mor-expert-shared", "router:0.48"): 0.48,
    ("mor-token-shared", "router"): None,
}
"""(checkpoint, rule) → the threshold of the torch forward."""
IDS = np.random.default_rng(8).integers(0, 320, 40)
PIECES = {"whole": [40], "chunks": [7, 16, 1, 11, 5], "tokens": [1] * 40}
CASES = [
    (*case, pieces) for case in RULES for pieces in PIECES if case[1] != "chunk-topk" or pieces == "whole"
]


@pytest.fixture(scope="module")
def opened(exported: Callable[..., Path]) -> Iterator[Callable[[str, str], Session]]:
    sessions: dict[tuple[str, str], Session] = {}

    def get(kind: str, engine: str) -> Session:
        if (kind, engine) not in sessions:
            sessions[kind, engine] = Session.open(exported(kind), engine=engine)
        return sessions[kind, engine]

    yield get
    for session in sessions.values():
        session.close()


def routed(session: Session, rule: str) -> SequentialDecoder:
    decoder = session._start(len(IDS))
    decoder.restart(session.choose(rule))
    return decoder


def run(
    decoder: SequentialDecoder, pieces: list[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits [S, V] and the depths [S] that the tokens ran, piece by piece."""
    ends = np.cumsum(pieces)[:-1]
    found = [(decoder.prompt(part, "all").copy(), decoder.ran) for part in np.split(IDS[: sum(pieces)], ends)]
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("riders", [0, 5, 100])
@pytest.mark.parametrize(("kind", "rule", "pieces"), CASES)
def test_it_is_the_authors_forward(
    opened: Callable[[str, str], Session],
    reading: Callable[[str], Reading],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rule: str,
    pieces: str,
    riders: int,
    engine: str,
) -> None:
    monkeypatch.setattr("edgeloop.runtime.decode.kv_layout.RIDERS", riders)
    wanted, ran = routed_forward.logits(reading(kind), torch.from_numpy(IDS), RULES[kind, rule])
    depths = np.bincount(np.concatenate(ran), minlength=len(IDS))
    assert len(set(depths.tolist())) == (4 if "expert" in kind else 3)  # some go nowhere, some everywhere
    logits, found = run(routed(opened(kind, engine), rule), PIECES[pieces])
    assert found.tolist() == depths.tolist()
    assert np.abs(logits - wanted.numpy()).max() <= 1e-4


def test_sharing_matters(reading: Callable[[str], Reading]) -> None:
    """The forward that these tests believe is not that of K and V for each depth."""
    for kind in ("mor-expert-shared", "mor-token-shared"):
        own = replace(reading(kind), program=sharing_kv(reading(kind).program, False))
        one, other = (routed_forward.logits(r, torch.from_numpy(IDS))[0] for r in (reading(kind), own))
        assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["mor-expert-shared", "mor-token-shared"])
def test_tokens_are_taken_back(opened: Callable[[str, str], Session], kind: str, engine: str) -> None:
    """The slot holds every token at its position."""
    decoder = routed(opened(kind, engine), "router")
    wanted, _ = run(decoder, [40])
    assert set(decoder.filled) == {40}
    decoder.truncate(21)
    again = decoder.prompt(IDS[21:], "all")
    np.testing.assert_allclose(again, wanted[21:], atol=2e-5)


def test_a_session_of_it(opened: Callable[[str, str], Session], exported: Callable[..., Path]) -> None:
    session = opened("mor-token-shared", "onnx")
    assert (session.policy.kv, session.policy.skipped_kv, session.policy.exit) == (
        "shared",
        "shared",
        "router",
    )
    steps = list(session.generate(IDS[:9], 20))
    found = session.logits(np.array([*IDS[:9], *(step.token for step in steps[:-1])]))
    assert [step.token for step in steps] == found[8:].argmax(-1).tolist()
    with pytest.raises(UsageError, match="'skip' for skipped K/V: with shared K/V depths share slots"):
        Session.open(exported("mor-token-shared"), skipped_kv="skip")


def test_who_runs_no_depth_is_seen_all_the_same(opened: Callable[[str, str], Session]) -> None:
    """The K and V of depth 0 are those of everybody, whomever the router lets go on."""
    decoder = routed(opened("mor-expert-shared", "reference"), "router")
    depths = decoder.backend.program.depths
    made = []
    for threshold in (1.0, 0.0):
        decoder.reset()
        decoder.sequence.rule = RoutingRule("router", depths, threshold=threshold)
        decoder.prompt(IDS)
        assert set(decoder.ran.tolist()) == {0 if threshold else depths}
        made.append(
            np.stack([array[0, :, : len(IDS)] for pair in decoder.cache.stages["block"] for array in pair])
        )
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0]).max(axis=-1).min() > 0
