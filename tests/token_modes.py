"""Models and policies whose tokens an engine may run whole: each combination that there is, on random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from mode_models import random_heads

from edgeloop.runtime.decode.modes import Mode, refusal
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequence import SequenceState
from edgeloop.runtime.decode.skipped_kv import SKIPPED_KV
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.program import Program

Opened = Callable[..., NativeBackend]
"""(a model's name, threads=1) → the lane engine with it."""


def heads_of(program: Program) -> dict[str, np.ndarray]:
    heads, random = dict(random_heads(program)), np.random.default_rng(5)
    width = program.loop.carries[0].width
    heads["probe.weight"] = random.standard_normal((program.depths - 1, width)).astype(np.float32)
    heads["probe.bias"] = random.standard_normal(program.depths - 1).astype(np.float32)
    return heads


def exits(program: Program) -> list[str]:
    if program.routing is not None:
        return ["router", "never", "depth:2", *(["router:0.4"] if program.routing.kind == "expert" else [])]
    gate = ["gate:0.6"] if program.exit_gate else []
    return ["never", "depth:2", "latent:0.9", "latent:0.5,1.1", "probe:0.6", *gate]


def policies(program: Program) -> Iterator[Policy]:
    heads = heads_of(program)
    for text in exits(program):
        for kv in ("per-depth", "shared", "last", *(["last-2"] if text == "never" else [])):
            for skipped_kv in SKIPPED_KV:
                try:
                    policy = choose_policy(program, heads, {}, text, skipped_kv, kv)
                except UsageError:
                    continue
                assert refusal(Mode(program, policy)) is None
                yield policy


MODELS = (
    "layers around the loop",
    "an exit gate",
    "norms and deltas of each depth",
    "two carries",
    "several blocks",
    "shared K/V",
    "a window",
    "the row before",
    "expert choice",
    "expert choice, shared K/V",
    "token choice",
    "token choice, shared K/V",
)


def same_state(found: SequenceState, wanted: SequenceState) -> None:
    """Assert that they are the same; what waits for a depth may be in several parts."""
    assert (found.cached, found.filled) == (wanted.cached, wanted.filled)
    assert [each.tolist() for each in found.held] == [each.tolist() for each in wanted.held]
    for ours, theirs in zip(found.waiting, wanted.waiting, strict=True):
        assert [w.first for w in ours] == [w.first for w in theirs[:1]]
        if ours:
            np.testing.assert_array_equal(ours[0].states, np.concatenate([w.states for w in theirs]))
