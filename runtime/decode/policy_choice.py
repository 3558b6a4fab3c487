"""Chooses a policy: what the caller names and, where it names nothing, what the model was trained for."""

from __future__ import annotations

from collections.abc import Mapping

from ..bundle.manifest import Exit
from ..engines.backend import F32
from ..errors import UsageError
from ..model.program import Program
from .exits import parse_rule
from .kv_layout import KV_LAYOUTS
from .modes import Mode, check_mode, refusal
from .policy import Policy
from .routing import parse_routing
from .skipped_kv import SKIPPED_KV

HUGINN = {
    "full": "give --kv per-depth",
    "latest-m4": "give --skipped-kv latest",
    "available-m4": "give --skipped-kv latest",
    "latest-m4-compress-s4": "give --kv last",
    "latest-m4-compress-s8": "give --kv last-2",
    "latest-m4-compress-s16": "give --kv last-4",
    "always-last-m4": "it is not there, for it changes what is read of tokens that did not leave; give --kv last",
}
"""What Huginn's authors call cache_lookup_strategy, and what is the same here."""


def choose_policy(
    program: Program,
    heads: Mapping[str, F32],
    calibrated: Mapping[str, Exit],
    exit: str | None = None,  # noqa: A002 - the word of the command line
    skipped_kv: str | None = None,
    kv: str | None = None,
) -> Policy:
    """Return the policy of a model where None stands for what it was trained for; UsageError when it cannot be had."""
    text = exit if exit is not None else "router" if program.routing else "never"
    rule = parse_routing(text, program) if program.routing else parse_rule(text, program, heads, calibrated)
    if kv is None:
        kv = "shared" if program.shares_kv else "per-depth"
    if skipped_kv is None and text in calibrated and kv == "per-depth" and not program.routing:
        skipped_kv = calibrated[text].skipped_kv
    asked = (("KV layout", kv, KV_LAYOUTS), ("policy for skipped K/V", skipped_kv, SKIPPED_KV))
    for what, value, known in asked:
        if value in HUGINN:
            raise UsageError(f"{what} {value!r} is a lookup of Huginn's cache: {HUGINN[value]}")
        if value not in (None, *known):
            raise UsageError(f"{what} {value!r}; known: {', '.join(known)}")
    names = SKIPPED_KV if skipped_kv is None else [skipped_kv]
    modes = [Mode(program, Policy(text, kv, name, rule)) for name in names]
    mode = next((mode for mode in modes if refusal(mode) is None), modes[0])
    check_mode(mode)
    return mode.policy
