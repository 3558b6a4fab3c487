"""Many requests on one engine: each gets the tokens, depths and text that it gets from a session of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.serve.handle import Completion
from edgeloop.runtime.serve.packed_calls import PackedCalls
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

ENGINES = ("onnx", "reference", "native")
random = np.random.default_rng(7)
# Prompts of one chunk and of several, answers that end at different times, each with its own dice.
REQUESTS = [
    (random.integers(0, 90, prompt).tolist(), tokens, sampling)
    for prompt, tokens, sampling in (
        (9, 30, SamplingOptions()),
        (40, 12, SamplingOptions(temperature=0.9, seed=3)),
        (1, 25, SamplingOptions(temperature=1.5, top_k=20, seed=5)),
        (20, 8, SamplingOptions(repetition_penalty=1.4)),
        (3, 40, SamplingOptions(temperature=0.7, top_p=0.9, seed=9)),
        (34, 20, SamplingOptions()),
        (17, 1, SamplingOptions(temperature=1.0, min_p=0.05, seed=1)),
    )
]
PER_DEPTH = ("exact", "propagate", "latest", "skip")
POLICIES = [
    ("edgeloop", {}),
    *(
        ("edgeloop", {"exit": rule, "skipped_kv": skipped_kv})
        for rule in ("depth:2", "confidence:0.02", "latent:0.35")
        for skipped_kv in PER_DEPTH
    ),
    *(("ouro", {"exit": "gate:0.7", "skipped_kv": skipped_kv}) for skipped_kv in PER_DEPTH),
    ("mor-lora", {"exit": "latent:0.5", "skipped_kv": "propagate"}),
    ("mor-norms", {"exit": "entropy:5.5", "skipped_kv": "exact"}),
    ("mor-cycle", {"exit": "kl:0.02", "skipped_kv": "propagate"}),
    ("edgeloop", {"kv": "last"}),
    ("ouro", {"kv": "last", "exit": "gate:0.7"}),
    ("mobilellm", {}),
    ("llama", {}),
    ("llama-window", {}),
    ("edgeloop-window", {"exit": "never"}),
    ("edgeloop-window", {"exit": "latent:0.35", "skipped_kv": "exact"}),
    ("edgeloop-window", {"exit": "latent:0.35", "skipped_kv": "skip"}),
    ("edgeloop-shared", {}),
    ("edgeloop-shared", {"exit": "latent:0.35"}),
    ("edgeloop-shared", {"exit": "confidence:0.02"}),
    ("mor-shared", {"exit": "depth:2"}),
    ("mor-expert", {}),
    ("mor-expert", {"exit": "router:0.45"}),
    ("mor-expert", {"exit": "depth:2"}),
    ("mor-token", {}),
    ("mor-token", {"exit": "never"}),
    ("edgeloop-routed", {}),
    ("mor-expert-shared", {}),
    ("mor-expert-shared", {"exit": "router:0.55"}),
    ("mor-token-shared", {}),
]


def alone(session: Session) -> list[Completion]:
    return [
        Completion(tuple(session.generate(prompt, tokens, sampling)), cancelled=False)
        for prompt, tokens, sampling in REQUESTS
    ]


def together(engine: BatchServer) -> list[Completion]:
    handles = [engine.submit(*request) for request in REQUESTS]
    return [handle.result(60) for handle in handles]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "policy"), POLICIES, ids=lambda x: x if isinstance(x, str) else "-".join(x.values())
)
def test_every_answer_is_its_lone_run(
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    policy: dict[str, str],
    engine: str,
) -> None:
    monkeypatch.setattr(
        "edgeloop.runtime.engines.kv.SLACK", 3
    )  # so that tokens leave a window within a few steps
    bundle = exported(kind)
    with Session.open(bundle, engine=engine, **policy) as session:
        wanted = alone(session)
    with BatchServer.open(bundle, engine=engine, sequences=3, **policy) as serving:
        found = together(serving)
        scheduler = serving.scheduler
        assert sorted(serving.pool.free) == [0, 1, 2]
        assert scheduler.rows > 1.2 * scheduler.calls  # they did share calls
    for one, other in zip(found, wanted, strict=True):
        assert one.tokens == other.tokens
        assert one.depths == other.depths
        assert one.text == other.text


def test_rounded_answers_are_those_of_a_lone_run(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale a row a token does not depend on its company, if prompts go in the same pieces as alone."""
    bundle = exported("edgeloop", "int8-channel")
    prompts = [random.integers(0, 90, n).tolist() for n in (3, 9, 14, 5, 16, 2, 11, 7, 13, 4, 8, 15)]
    with Session.open(bundle) as session:
        wanted = [[step.token for step in session.generate(prompt, 40)] for prompt in prompts]
    counts: list[list[int]] = []
    run = PackedCalls.run

    def watched(self: PackedCalls, stage: str, group: list[tuple[Any, Any]]) -> Any:
        counts.append([len(call.rows) for _, call in group])
        return run(self, stage, group)

    monkeypatch.setattr(PackedCalls, "run", watched)
    with BatchServer.open(bundle, sequences=4) as serving:
        handles = [serving.submit(prompt, 40) for prompt in prompts]
        found = [[step.token for step in handle] for handle in handles]
    assert found == wanted
    assert max(map(len, counts)) == 4
    assert all(len(rows) == 1 or set(rows) == {1} for rows in counts)  # nobody is padded to another's length


@pytest.mark.parametrize(("engine", "reuse"), [("onnx", True), ("native", None)])
@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("edgeloop", {}),
        ("edgeloop", {"exit": "latent:0.35", "skipped_kv": "exact"}),
        ("edgeloop-shared", {"exit": "latent:0.35"}),
        ("mor-expert", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x.values()),
)
def test_conversations_prefill_what_is_new(
    exported: Callable[..., Path],
    lane_engine: Path,
    kind: str,
    policy: dict[str, str],
    engine: str,
    reuse: bool | None,
) -> None:
    """Two at a time, in turns: the answers of lone runs. A row-exact engine reuses by itself."""
    bundle = exported(kind)
    texts = [list(range(5, 12)), list(range(40, 60))]
    with (
        Session.open(bundle, engine=engine, **policy) as session,
        BatchServer.open(bundle, engine=engine, sequences=3, reuse=reuse, **policy) as serving,
    ):
        for turn in range(3):
            handles = [serving.submit(text, 6, SamplingOptions(temperature=0.8, seed=turn)) for text in texts]
            for text, handle in zip(texts, handles, strict=True):
                found = handle.result(60)
                wanted = session.generate(text, 6, SamplingOptions(temperature=0.8, seed=turn))
                assert found.tokens == tuple(step.token for step in wanted)
                assert (found.reused > 0) == (turn > 0)
                text += [*found.tokens, 3, turn]
        assert serving.pool.reused_tokens > serving.pool.prompt_tokens / 3
