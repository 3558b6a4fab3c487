"""Drift: against arithmetic by hand, and against what two sessions show of their depths."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeloop.export import export_bundle
from edgeloop.export.drift.chart import drawing
from edgeloop.export.drift.measure import Drift, measure, read_depths, settled
from edgeloop.export.drift.models import FLOAT, CheckpointModels, Model, open_bundle
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.session import Session

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
INT4 = Recipe.named("int4", 32)
WIDTH, VOCAB, DEPTHS = 6, 11, 3


class Linear:
    """A model without attention: h → M h + b at every depth, read out by a matrix."""

    def __init__(self, embed: Any, matrix: Any, bias: Any, head: Any) -> None:
        self.embed, self.matrix, self.bias, self.head = (
            x.astype(np.float32) for x in (embed, matrix, bias, head)
        )
        self.program = SimpleNamespace(
            depths=DEPTHS,
            vocab_size=VOCAB,
            prefix_lm=False,
            loop=SimpleNamespace(carries=[SimpleNamespace(width=WIDTH)]),
            caches=lambda stage: [],
        )

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> Any:
        return SimpleNamespace(reserve=lambda tokens: None, slot=lambda stage, sequence, depth: 0)

    def prologue(self, ids: Any, lanes: Any, cache: Any) -> Any:
        return self.embed[ids]

    def block(self, state: Any, lanes: Any, cache: Any) -> Any:
        return state @ self.matrix.T + self.bias

    def epilogue(self, state: Any, rows: Any, lanes: Any, cache: Any) -> Any:
        return state.reshape(-1, WIDTH)[rows] @ self.head.T


def test_the_parts_of_an_error_by_hand() -> None:
    """With matrices alone, every part of the error of a depth has a formula in float64."""
    random = np.random.default_rng(0)
    exact = [
        random.standard_normal(size) for size in ((VOCAB, WIDTH), (WIDTH, WIDTH), (WIDTH,), (VOCAB, WIDTH))
    ]
    exact[1] *= 0.4
    near = [x + 0.01 * random.standard_normal(x.shape) for x in exact]
    ids = random.integers(0, VOCAB, 300)
    one: Any = Linear(*exact)
    other: Any = Linear(*near)
    (found,) = measure(one, [("near", other)], ids, 300, [1, 3])

    embed, a, b, head = (x.astype(np.float32).astype(np.float64) for x in exact)
    embed_q, a_q, b_q, head_q = (x.astype(np.float32).astype(np.float64) for x in near)
    h, q = embed[ids], embed_q[ids]
    e = np.linalg.norm(q - h, axis=1) / np.linalg.norm(h, axis=1)
    bound = e
    for r in range(1, DEPTHS + 1):
        after, after_q = h @ a.T + b, q @ a_q.T + b_q
        scale = np.linalg.norm(after, axis=1)
        injected = np.linalg.norm(h @ (a_q - a).T + (b_q - b), axis=1) / scale
        carried = np.linalg.norm((q - h) @ a.T, axis=1) / scale
        mixed = np.linalg.norm((q - h) @ (a_q - a).T, axis=1) / scale
        stretch = carried / e
        bound = stretch * bound + injected + mixed
        h, q = after, after_q
        e = np.linalg.norm(q - h, axis=1) / scale
        depth = found.depths[r]
        for name, values in (
            ("error", e), ("injected", injected), ("carried", carried), ("mixed", mixed), ("amplification", stretch),
            ("bound", bound),
        ):  # fmt: skip
            assert getattr(depth, name) == pytest.approx(np.median(values), rel=1e-3), name
        assert depth.error_95 == pytest.approx(np.percentile(e, 95), rel=1e-3)
        assert (bound >= e * (1 - 1e-9)).all()
        if r == 2:
            assert (depth.kl, depth.flipped) == (None, None)
            continue
        p, p_q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (h @ head.T, q @ head_q.T))
        assert depth.kl == pytest.approx((p * np.log(p / p_q)).sum(axis=1).mean(), rel=1e-3)
        assert depth.flipped == pytest.approx((p.argmax(axis=1) != p_q.argmax(axis=1)).mean())


def test_a_model_beside_itself_has_no_drift() -> None:
    random = np.random.default_rng(0)
    one: Any = Linear(
        *(random.standard_normal(s) for s in ((VOCAB, WIDTH), (WIDTH, WIDTH), (WIDTH,), (VOCAB, WIDTH)))
    )
    (found,) = measure(one, [("same", one)], random.integers(0, VOCAB, 20), 8, [1, 2, 3])
    assert "nan" not in drawing([found], 3)
    assert {(d.error, d.error_95, d.bound) for d in found.depths} == {(0, 0, 0)}
    assert {(d.kl, d.flipped, d.carried, d.amplification) for d in found.depths[1:]} == {(0, 0, 0, 0)}


def models(path: Path, folder: Path, depth: int | None = None) -> tuple[Model, Model]:
    made = CheckpointModels(path, depth, folder)
    return made.open(FLOAT), made.open(INT4)


def drift(floats: Model, other: Model, ids: Any, window: int) -> Drift:
    reads = read_depths(floats.backend.program.depths, floats.trained)
    (found,) = measure(floats.backend, [(other.name, other.backend)], ids, window, reads)
    return found


@pytest.mark.parametrize(
    "kind", ["edgeloop", "edgeloop-routed", "edgeloop-shared", "edgeloop-window", "mor-own-attention", "ouro"]
)
def test_every_way_to_keep_kv(kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    floats, other = models(tiny(kind), tmp_path)
    ids = np.random.default_rng(1).integers(0, floats.backend.program.vocab_size, 50)
    found = drift(floats, other, ids, 30)
    assert len(found.depths) == floats.backend.program.depths + 1
    for before, depth in pairwise(found.depths):
        assert 0.001 < depth.error < 1
        assert depth.error <= depth.bound
        assert depth.growth == pytest.approx(depth.error / before.error)
        assert depth.injected is not None
        assert 0 < depth.injected < 1
        assert depth.kl is not None
        assert 0 < depth.kl < 1


@pytest.mark.parametrize(
    "fixture", ["huginn_tiny", "hrm_text_h1l4_noprefix", "iquestloopcoder_w5", "parcae_diag"]
)
def test_families_with_more_than_a_state(fixture: str, tmp_path: Path) -> None:
    """Several carries, K/V of depth 0, rows of the token before: whatever goes from depth to depth is compared."""
    floats, other = models(PARITY / fixture, tmp_path)
    ids = np.random.default_rng(1).integers(0, floats.backend.program.vocab_size, 24)
    found = drift(floats, other, ids, 16)
    for depth in found.depths[1:]:
        assert 0 < depth.error <= depth.bound
        assert depth.kl is not None
        assert depth.kl > 0


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_bundles_are_compared_as_their_sessions_run(
    engine: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Error and read-out are those between two sessions' own states and logits, in windows and chunks."""
    paths = tmp_path / "float", tmp_path / "int4"
    for out, quant in zip(paths, ("none", "int4"), strict=True):
        export_bundle(
            tiny("edgeloop") if quant == "none" else tmp_path / "edgeloop",
            out,
            targets=(engine,),
            quant=quant,
        )
    opened = [open_bundle(path, None, engine, None, 32) for path in paths]
    ids = np.random.default_rng(1).integers(0, opened[0].backend.program.vocab_size, 100)
    found = drift(*opened, ids, 64)
    states: list[dict[int, list[Any]]] = []
    for path in paths:
        seen: dict[int, list[Any]] = {}
        with Session.open(path, engine=engine, context=64) as session:
            session.visit_depths(
                ids,
                lambda depth, at, before, after, logits, seen=seen: seen.setdefault(depth, []).append(
                    (after.astype(np.float64), logits.argmax(axis=1))
                ),
            )
        states.append(seen)
    for depth, each in enumerate(found.depths[1:]):
        (h, likeliest), (q, likeliest_q) = (
            (np.concatenate([x for x, _ in s[depth]]), np.concatenate([y for _, y in s[depth]]))
            for s in states
        )
        error = np.linalg.norm(q - h, axis=1) / np.linalg.norm(h, axis=1)
        assert each.error == pytest.approx(np.median(error), rel=1e-3)
        assert each.error_95 == pytest.approx(np.percentile(error, 95), rel=1e-3)
        assert each.flipped == pytest.approx((likeliest != likeliest_q).mean(), abs=0.011)
    for model in opened:
        model.backend.close()


def test_far_beyond_the_trained_depth(tmp_path: Path) -> None:
    floats, other = models(PARITY / "huginn_tiny", tmp_path, 40)
    assert floats.trained == 5
    found = drift(floats, other, np.arange(12), 12)
    read = [depth.depth for depth in found.depths if depth.kl is not None]
    assert read == [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 40]
    assert all(depth.error <= depth.bound for depth in found.depths)
    picture = drawing([found], floats.trained)
    texts = {text.text for text in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert {"as trained", "int4 in groups of 32", "32"} <= texts


def test_where_the_error_settles() -> None:
    random = np.random.default_rng(0)
    sizes = ((VOCAB, WIDTH), (WIDTH, WIDTH), (WIDTH,), (VOCAB, WIDTH))
    for factor, settles in ((0.05, True), (3.0, False)):
        exact = [random.standard_normal(size) for size in sizes]
        exact[1] = factor * np.eye(WIDTH)
        exact[2] *= factor < 1  # with no bias, states grow as errors do
        near = [x.copy() for x in exact]
        near[1] = near[1] * 1.01
        one: Any = Linear(*exact)
        other: Any = Linear(*near)
        (found,) = measure(one, [("near", other)], random.integers(0, VOCAB, 40), 40, [3])
        if settles:
            last = found.depths[-1]
            assert found.settles_at == settled(found.depths) == last.injected / (1 - last.amplification)  # type: ignore[operator]
            assert last.error <= last.bound
        else:
            assert found.settles_at is None


def test_models_that_are_no_twins(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    one = CheckpointModels(PARITY / "huginn_tiny", None, tmp_path).open(FLOAT)
    other = CheckpointModels(PARITY / "huginn_tiny", 3, tmp_path).open(INT4)
    with pytest.raises(
        UsageError, match="has 3 depths and the float model 5; give two exports of one checkpoint"
    ):
        drift(one, other, np.arange(3), 3)
