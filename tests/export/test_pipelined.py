"""Pipelined decoding on ONNX Runtime writes what sequential decoding writes: tiny models of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.runtime.acceptance import Fixed, Plan
from edgeloop.runtime.sampling import SamplingOptions
from edgeloop.runtime.session import Session

Exported = Callable[..., Path]
SAMPLING = {
    "greedy": SamplingOptions(),
    "sampled": SamplingOptions(temperature=0.9, seed=5),
    "filtered": SamplingOptions(temperature=1.2, top_k=20, top_p=0.95, seed=9),
    "penalty": SamplingOptions(temperature=0.7, repetition_penalty=1.3, seed=2),
}
PLANS = (Plan(0), Plan(0, judge=True), Plan(1))
PROMPT = [5, 6, 7, 8, 9]


def write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan | None, tokens: int = 24
) -> dict[str, list[int]]:
    """What a session writes with each way of sampling, one after the other; without ``plan``, sequentially."""
    if plan is not None:
        monkeypatch.setattr("edgeloop.runtime.session.Pace", lambda depths: Fixed(depths, plan))
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
    monkeypatch.setattr("edgeloop.runtime.kv.SLACK", 3)  # tokens leave a window within a few steps
    folder = exported(kind)
    wanted = write(folder, monkeypatch, None)
    for plan in PLANS:
        assert write(folder, monkeypatch, plan) == wanted, plan


@pytest.mark.parametrize("kind", ["edgeloop", "mor-lora"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantized(exported: Exported, monkeypatch: pytest.MonkeyPatch, kind: str, quant: str) -> None:
    """A call with more rows may take another kernel, which rounds otherwise: nearly all texts are the same."""
    folder = exported(kind, quant)
    wanted = write(folder, monkeypatch, None)
    for plan in PLANS:
        found = write(folder, monkeypatch, plan)
        same = sum(found[name] == wanted[name] for name in wanted)
        assert same >= len(wanted) - 1, plan


@pytest.mark.parametrize("missing", ["propagate", "skip"])
@pytest.mark.parametrize("kind", ["edgeloop", "mor-cycle"])
def test_exits(exported: Exported, monkeypatch: pytest.MonkeyPatch, kind: str, missing: str) -> None:
    """Tokens and the depths that they ran are those of the same rule, sequentially."""
    found = {}
    for plan in (None, *PLANS):
        if plan:
            monkeypatch.setattr(
                "edgeloop.runtime.session.WholeTokens", lambda depths, plan=plan: Fixed(depths, plan)
            )
        decode = "pipelined" if plan else "sequential"
        with Session.open(exported(kind), decode=decode, exit="latent:0.7", missing=missing) as session:
            for name, sampling in SAMPLING.items():
                steps = session.generate(PROMPT, 24, sampling=sampling)
                found[plan, name] = [(step.token, step.depth) for step in steps]
                assert found[plan, name] == found[None, name], (plan, name)
    assert len({depth for steps in found.values() for _, depth in steps[1:]}) > 1
