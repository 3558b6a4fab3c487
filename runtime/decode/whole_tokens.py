"""Which modes an engine may run in whole tokens, without the host between depths: a table, beside that of ``modes.py``.

What is not in it goes stage by stage (``sequence.py``): rules that read logits, and routers that see a whole text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..engines.backend import F32, Backend, runs_tokens
from ..engines.tokens import RuleName, SkippedName, TokenMode, TokenState, WaitingStates
from ..model.program import Program, Routing
from .kv_layout import SharedSlot
from .modes import PIPELINED, Mode, refusal
from .policy import Policy
from .routing import RoutingRule, half_way
from .sequence import SequenceState, TokenSequence
from .skipped_kv import Exact, Latest, NothingMissing, Propagate, Shared, Skip, Waiting
from .stage_call import tokens_from

RULES: dict[str, RuleName] = {
    "never": "never",
    "depth": "depth",
    "latent": "latent",
    "gate": "gate",
    "probe": "probe",
}
"""Exit rules by name. The others read logits after every depth."""
ROUTERS: dict[str, RuleName] = {"expert": "expert", "token": "token"}
"""Routers by kind, unless they take their share of a whole text."""
SKIPPED: dict[type[NothingMissing], SkippedName] = {
    NothingMissing: "none",
    Shared: "none",
    Exact: "exact",
    Propagate: "propagate",
    Latest: "latest",
    Skip: "skip",
}


def token_mode(sequence: TokenSequence) -> TokenMode | None:
    """Return how an engine runs the tokens of ``sequence``; None where the host has to decide between depths."""
    rule, program, heads = sequence.rule, sequence.program, sequence.heads
    if isinstance(sequence.skipped, Shared) and (sequence.layout.slots or 0) > 1:
        return None  # a token that left is copied into slots that it did not write
    mode = TokenMode(
        rule="never",
        depths=program.depths,
        stop=rule.stop,
        skipped=SKIPPED[type(sequence.skipped)],
        shared=isinstance(sequence.layout, SharedSlot),
        heads=heads,
    )
    if isinstance(rule, RoutingRule):
        return _routed(mode, rule, program.routing, heads)
    if rule.name not in RULES:
        return None
    return replace(mode, rule=RULES[rule.name], thresholds=rule.thresholds)


def drafts_by_itself(backend: Backend, program: Program, policy: Policy, heads: Mapping[str, F32]) -> bool:
    """Return whether ``backend`` drafts tokens of such sequences without the host, and so knows best whether to."""
    mode = Mode(program, policy, PIPELINED, backend.name, backend.can)
    if not runs_tokens(backend) or refusal(mode) is not None:
        return False
    return token_mode(TokenSequence(program, policy, heads, lambda: 1)) is not None


def _routed(
    mode: TokenMode, rule: RoutingRule, routing: Routing | None, heads: Mapping[str, F32]
) -> TokenMode | None:
    """Return ``mode`` with a router; None where it sees more than one token, or its two heads differ in shape."""
    shapes = [getattr(heads.get(f"{name}.hidden"), "shape", None) for name in ("router", "auxiliary")]
    if rule.topk or routing is None or (routing.auxiliary and shapes[0] != shapes[1]):
        return None
    threshold = half_way(routing) if rule.threshold is None else rule.threshold
    return replace(
        mode,
        rule=ROUTERS[routing.kind],
        thresholds=(threshold,),
        routing=routing,
        everyone=rule.everyone,
    )


def token_state(sequence: TokenSequence) -> TokenState:
    """Return what an engine has to know of ``sequence``."""
    state = sequence.snapshot()
    width = sequence.program.width
    waiting = (
        WaitingStates(
            np.concatenate([tokens_from(0, 0), *(tokens_from(w.first, len(w.states)) for w in parts)]),
            np.concatenate([np.empty((0, width), np.float32), *(w.states for w in parts)]),
        )
        for parts in state.waiting
    )
    return TokenState(state.cached, state.filled, state.held or _NOTHING * len(state.filled), tuple(waiting))


def sequence_state(state: TokenState, gaps: bool, prefix: int = 0) -> SequenceState:
    """Return what a sequence has to know of ``state``. ``gaps``: whether its slots lack tokens. ``prefix``: its own."""
    waiting = (
        (Waiting(each.positions.item(0), each.states),) if len(each.positions) else ()
        for each in state.waiting
    )
    return SequenceState(state.cached, state.filled, tuple(waiting), state.held if gaps else (), prefix)


_NOTHING = (np.empty(0, np.int64),)
