"""Which models can be decoded in which way, and under which policies."""

from __future__ import annotations

from ..errors import UsageError
from ..model.program import Program
from .exits import ExitRule
from .policy import Policy
from .routing import RoutingRule

DECODE = ("sequential", "pipelined")


def check_decode(decode: str, program: Program, policy: Policy) -> None:
    """UsageError when a model cannot be decoded that way under that policy."""
    if decode not in DECODE:
        raise UsageError(f"decode {decode!r}; known: {', '.join(DECODE)}")
    if decode == "sequential":
        return
    reasons = (
        (program.depths == 1, "the model has one depth, so there is nothing to pipeline"),
        *_exit_reasons(program, policy),
        (
            policy.kv == "last",
            "with one KV slot for all depths a token has to finish before the next one begins",
        ),
        (
            program.shares_kv and (program.depths == 2 or program.differs(program.stage("block"))),
            "depths that share K and V ride in one call only if there are three or more, without own norms or deltas",
        ),
    )
    for applies, reason in reasons:
        if applies:
            raise UsageError(f"decode 'pipelined': {reason}; use sequential")


def exits_early(policy: Policy) -> bool:
    """Does an exit rule or a router decide how deep a token goes?"""
    return not (isinstance(policy.rule, ExitRule) and policy.rule.never)


def _exit_reasons(program: Program, policy: Policy) -> tuple[tuple[bool, str], ...]:
    """What keeps a rule from being pipelined."""
    rule = policy.rule
    if not exits_early(policy):
        return ()
    named = f"exit rule {policy.exit!r}"
    return (
        (
            policy.skipped_kv == "latest",
            "policy latest copies the K and V of a token that left, which a wrong draft would need back",
        ),
        (isinstance(rule, RoutingRule) and rule.topk, f"{named} has to see a whole text at once"),
        (program.window is not None, f"{named} and a sliding window move rows that a wrong draft needs back"),
        (
            isinstance(rule, ExitRule) and rule.reads_logits and len(program.caches("epilogue")) > 0,
            f"{named} reads logits, for which the layers after the loop wait for the tokens before",
        ),
    )
