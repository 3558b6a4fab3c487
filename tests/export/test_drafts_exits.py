"""Pipelined decoding under exit rules and routers: the tokens and depths of sequential decoding; who is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.session import Session

Bundles = Callable[..., Path]
REQUESTS = [
    ([5, 6, 7, 8], 60, SamplingOptions()),
    ([1], 30, SamplingOptions(temperature=0.8, seed=3)),
    ([9, 2, 4], 30, SamplingOptions(repetition_penalty=1.4)),
]
SKIPPED_KV = ("exact", "propagate", "skip")
POLICIES = [
    *(
        ("edgeloop", {"exit": rule, "skipped_kv": m})
        for rule in ("depth:2", "latent:0.35")
        for m in SKIPPED_KV
    ),
    *(
        ("ouro", {"exit": rule, "skipped_kv": m})
        for rule in ("gate:0.7", "confidence:0.04")
        for m in SKIPPED_KV
    ),
    ("mor-lora", {"exit": "latent:0.5", "skipped_kv": "propagate"}),
    ("mor-cycle", {"exit": "kl:0.2", "skipped_kv": "propagate"}),
    ("mor-expert", {}),
    ("mor-expert", {"exit": "router:0.45"}),
    ("mor-expert", {"exit": "depth:2"}),
    ("mor-token", {}),
    ("mor-token", {"exit": "never"}),
    ("edgeloop-routed", {}),
    ("mor-shared", {"exit": "depth:2"}),
    ("mor-shared", {"exit": "latent:0.6"}),
    ("mor-shared", {"exit": "confidence:0.08"}),
    ("edgeloop", {"exit": "confidence:0.02", "skipped_kv": "exact"}),
    ("edgeloop", {"exit": "confidence:0.02", "skipped_kv": "latest"}),
    ("edgeloop-window", {"exit": "latent:0.35", "skipped_kv": "exact"}),
    ("edgeloop-window", {"exit": "latent:0.35", "skipped_kv": "skip"}),
    ("mor-expert-shared", {}),
    ("mor-expert-shared", {"exit": "router:0.45"}),
    ("mor-token-shared", {}),
]


@pytest.mark.parametrize("engine", ["reference", "onnx"])
@pytest.mark.parametrize(
    ("kind", "policy"), POLICIES, ids=lambda x: x if isinstance(x, str) else "-".join(x.values())
)
def test_tokens_and_depths_are_sequential(
    exported: Bundles, monkeypatch: pytest.MonkeyPatch, kind: str, policy: dict[str, str], engine: str
) -> None:
    # It drafts whatever that costs.
    monkeypatch.setattr(
        "edgeloop.runtime.session.WholeTokenController", lambda depths: FixedPlan(depths, DraftPlan(0))
    )
    found = []
    for decode in ("sequential", "pipelined"):
        with Session.open(exported(kind), engine=engine, decode=decode, **policy) as session:
            found.append([[(s.token, s.depth) for s in session.generate(*request)] for request in REQUESTS])
            stats = session.stats
    assert found[1] == found[0]
    assert stats.acceptance is not None  # there were drafts


def test_a_share_of_a_whole_text_is_refused(exported: Bundles) -> None:
    with pytest.raises(UsageError, match="has to see a whole text at once"):
        Session.open(exported("mor-expert"), decode="pipelined", exit="chunk-topk")
