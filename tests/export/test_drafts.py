"""Pipelined decoding on ONNX Runtime writes what sequential decoding writes: tiny models of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeloop.export.bounds import MARGIN, difference
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan
from edgeloop.runtime.decode.pipeline import Pipeline
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import F32, I64
from edgeloop.runtime.engines.table import open_backend
from edgeloop.runtime.session import Session

Exported = Callable[..., Path]
SAMPLING = {
    "greedy": SamplingOptions(),
    "sampled": SamplingOptions(temperature=0.9, seed=5),
    "filtered": SamplingOptions(temperature=1.2, top_k=20, top_p=0.95, seed=9),
    "penalty": SamplingOptions(temperature=0.7, repetition_penalty=1.3, seed=2),
}
PLANS = (DraftPlan(0), DraftPlan(0, judge=True), DraftPlan(1))
PROMPT = [5, 6, 7, 8, 9]


def write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plan: DraftPlan | None, tokens: int = 24
) -> dict[str, list[int]]:
    """What a session writes with each way of sampling, one after the other; without ``plan``, sequentially."""
    if plan is not None:
        monkeypatch.setattr(
            "edgeloop.runtime.session.DraftController", lambda depths: FixedPlan(depths, plan)
        )
    found = {}
    with Session.open(folder, decode="pipelined" if plan else "sequential") as session:
        for name, sampling in SAMPLING.items():
            found[name] = [s.token for s in session.generate(PROMPT, tokens, sampling=sampling)]
            if plan is not None:
                assert session.stats.acceptance is not None
    return found


@pytest.mark.parametrize(
    "kind",
    ["edgeloop", "edgeloop-window", "mor-cycle", "mor-lora", "mor-norms", "mor-shared", "ouro"],
)  # fmt: skip
def test_float(exported: Exported, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)  # tokens leave a window within a few steps
    folder = exported(kind)
    wanted = write(folder, monkeypatch, None)
    for plan in PLANS:
        assert write(folder, monkeypatch, plan) == wanted, plan


@pytest.mark.parametrize("kind", ["edgeloop", "mor-lora"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantized(exported: Exported, kind: str, quant: str) -> None:
    """A call with more rows may take another kernel, which rounds otherwise: no more than int8 activations do anyway.

    Measured: 2e-4 of the largest logit at most, where activations that round either way make 3e-2.
    """
    bundle = Bundle.open(exported(kind, quant))
    backend, parity = open_backend("onnx", bundle), bundle.manifest.targets["onnx"].parity
    assert parity.bound is not None
    random = np.random.default_rng(0)
    for plan in PLANS:
        loops = [SequentialDecoder(backend, backend.new_cache(1, 40)) for _ in range(2)]

        def draft(logits: F32, history: I64, position: int) -> int:
            return int((logits.argmax() + random.integers(2)) % len(logits))  # some right, some wrong

        pipeline = Pipeline(loops[1], draft, FixedPlan(bundle.program.depths, plan))
        wanted = loops[0].prompt(np.array(PROMPT)).copy()
        loops[1].prompt(np.array(PROMPT))
        pipeline.begin(np.array(PROMPT))
        while loops[0].cached < loops[0].capacity:
            token = np.array([int(wanted[-1].argmax())])
            wanted = loops[0].prompt(token).copy()
            assert difference(pipeline.step(int(token[0])), wanted) <= parity.bound / MARGIN
        assert loops[1].clock.acceptance not in (None, 0, 1)


@pytest.mark.parametrize("skipped_kv", ["propagate", "skip"])
@pytest.mark.parametrize("kind", ["edgeloop", "mor-cycle"])
def test_exits(exported: Exported, monkeypatch: pytest.MonkeyPatch, kind: str, skipped_kv: str) -> None:
    """Tokens and the depths that they ran are those of the same rule, sequentially."""
    found = {}
    for plan in (None, *PLANS):
        if plan:
            monkeypatch.setattr(
                "edgeloop.runtime.session.WholeTokenController",
                lambda depths, plan=plan: FixedPlan(depths, plan),
            )
        decode = "pipelined" if plan else "sequential"
        with Session.open(exported(kind), decode=decode, exit="latent:0.7", skipped_kv=skipped_kv) as session:
            for name, sampling in SAMPLING.items():
                steps = session.generate(PROMPT, 24, sampling=sampling)
                found[plan, name] = [(step.token, step.depth) for step in steps]
                assert found[plan, name] == found[None, name], (plan, name)
    assert len({depth for steps in found.values() for _, depth in steps[1:]}) > 1
