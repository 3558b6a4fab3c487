"""What a session does with depth: who stops where, which slots hold K and V, what becomes of K and V not made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..bundle.manifest import Exit
from ..engines.backend import F32, can_fill
from ..errors import UsageError
from ..model.program import Program
from .exits import ExitRule, parse_rule
from .routing import RoutingRule, parse_routing

KV = ("per-depth", "shared", "last")
SKIPPED_KV = ("exact", "propagate", "latest", "shared", "skip")


@dataclass(frozen=True)
class Policy:
    """``exit``: the rule's text, ``rule`` what it means. ``kv``, ``skipped_kv``: one of ``KV``, of ``SKIPPED_KV``."""

    exit: str
    kv: str
    skipped_kv: str
    rule: ExitRule | RoutingRule


def choose_policy(
    program: Program,
    heads: Mapping[str, F32],
    calibrated: Mapping[str, Exit],
    exit: str | None = None,  # noqa: A002 - the word of the command line
    skipped_kv: str | None = None,
    kv: str | None = None,
) -> Policy:
    """The policy of a model where None stands for what it was trained for; UsageError when it cannot be had."""
    kv = _kv(program, kv)
    text = exit or ("router" if program.routing else "never")
    rule: ExitRule | RoutingRule
    if program.routing:
        rule = parse_routing(text, program)
    else:
        rule = parse_rule(text, program, heads, calibrated)
        if skipped_kv is None and text in calibrated and kv == "per-depth":
            skipped_kv = calibrated[text].skipped_kv
    return Policy(text, kv, _skipped_kv(program, kv, skipped_kv), rule)


def full_depth(program: Program, slots: int) -> Policy:
    """Every token runs every depth, with K and V as the model has them, in caches of ``slots`` slots a sequence."""
    rule = ExitRule("never", program.depths, never=True)
    if program.shares_kv or slots < program.kv_slots:
        return Policy("never", "shared" if program.shares_kv else "last", "shared", rule)
    return Policy("never", "per-depth", "exact", rule)


def _kv(program: Program, kv: str | None) -> str:
    own = "shared" if program.shares_kv else "per-depth"
    if kv is None or kv == own:
        return own
    if kv not in KV:
        raise UsageError(f"KV policy {kv!r}; known: {', '.join(KV)}")
    if (
        kv == "last"
        and own == "per-depth"
        and program.depths > 1
        and not program.routing
        and program.window is None
    ):
        return kv
    hint = (
        "; export it with --kv shared"
        if kv == "shared" and not program.routing and program.depths > 1
        else ""
    )
    raise UsageError(f"KV policy {kv!r}: the depths of this model have {own} K and V{_what(program)}{hint}")


def _what(program: Program) -> str:
    if program.routing:
        return " and a router"
    if program.window is not None:
        return f" and a sliding window of {program.window} tokens"
    return " and there is no loop" if program.depths == 1 else ""


def _skipped_kv(program: Program, kv: str, skipped_kv: str | None) -> str:
    if kv != "per-depth":
        allowed = ["shared"]
    elif program.routing:
        allowed = ["skip"]
    else:
        latest = program.depths > 1 and program.window is None  # rows stay where they are
        allowed = ["exact", *["propagate"] * can_fill(program), *["latest"] * latest, "skip"]
    if skipped_kv is None:
        return allowed[0]
    if skipped_kv not in SKIPPED_KV:
        raise UsageError(f"policy {skipped_kv!r} for skipped K and V; known: {', '.join(SKIPPED_KV)}")
    if skipped_kv not in allowed:
        raise UsageError(
            f"policy {skipped_kv!r} for skipped K and V: with {kv} K and V{_what(program)} there is "
            f"{', '.join(allowed)}"
        )
    return skipped_kv
