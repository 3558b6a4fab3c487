"""What a session does with depth: who stops where, which slots hold K and V, what becomes of K and V not made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .backend import F32, can_fill, shares_kv
from .errors import UsageError
from .exits import ExitRule, parse_rule
from .kv import visible
from .manifest import Exit
from .routing import RoutingRule, parse_routing
from .spec import Spec

KV = ("per-depth", "shared", "last")
MISSING = ("exact", "propagate", "shared", "skip")


@dataclass(frozen=True)
class Policy:
    """``exit``: the rule's text. ``kv``, ``missing``: as in ``KV`` and ``MISSING``. ``rule``: what ``exit`` means."""

    exit: str
    kv: str
    missing: str
    rule: ExitRule | RoutingRule


def choose_policy(
    spec: Spec,
    heads: Mapping[str, F32],
    calibrated: Mapping[str, Exit],
    exit: str | None = None,  # noqa: A002 - the word of the command line
    missing: str | None = None,
    kv: str | None = None,
) -> Policy:
    """The policy of a model where None stands for what it was trained for; UsageError when it cannot be had."""
    kv = _kv(spec, kv)
    text = exit or ("router" if spec.routing else "never")
    rule: ExitRule | RoutingRule
    if spec.routing:
        rule = parse_routing(text, spec)
    else:
        rule = parse_rule(text, spec, heads, calibrated)
        if missing is None and text in calibrated and kv == "per-depth":
            missing = calibrated[text].missing
    return Policy(text, kv, _missing(spec, kv, missing), rule)


def _kv(spec: Spec, kv: str | None) -> str:
    own = "shared" if shares_kv(spec) else "per-depth"
    if kv is None or kv == own:
        return own
    if kv not in KV:
        raise UsageError(f"KV policy {kv!r}; known: {', '.join(KV)}")
    if kv == "last" and own == "per-depth" and spec.depths > 1 and not spec.routing and visible(spec) is None:
        return kv
    hint = "; export it with --kv shared" if kv == "shared" and not spec.routing and spec.depths > 1 else ""
    raise UsageError(f"KV policy {kv!r}: the depths of this model have {own} K and V{_what(spec)}{hint}")


def _what(spec: Spec) -> str:
    if spec.routing:
        return " and a router"
    if visible(spec) is not None:
        return f" and a sliding window of {visible(spec)} tokens"
    return " and there is no loop" if spec.depths == 1 else ""


def _missing(spec: Spec, kv: str, missing: str | None) -> str:
    if kv != "per-depth":
        allowed = ["shared"]
    elif spec.routing:
        allowed = ["skip"]
    else:
        allowed = ["exact", *(["propagate"] if can_fill(spec) else []), "skip"]
    if missing is None:
        return allowed[0]
    if missing not in MISSING:
        raise UsageError(f"policy {missing!r} for missing K and V; known: {', '.join(MISSING)}")
    if missing not in allowed:
        raise UsageError(
            f"policy {missing!r} for missing K and V: with {kv} K and V{_what(spec)} there is {', '.join(allowed)}"
        )
    return missing
