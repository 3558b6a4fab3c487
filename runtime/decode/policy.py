"""Policies: at which depth tokens stop, which slots hold their K/V, what stands in for K/V not made."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.program import Program
from .exits import ExitRule
from .kv_layout import LAST_DEPTHS
from .routing import RoutingRule


@dataclass(frozen=True)
class Policy:
    """``exit``: the text of ``rule``. ``kv``, ``skipped_kv``: names of ``KV_LAYOUTS``, of ``SKIPPED_KV``."""

    exit: str
    kv: str
    skipped_kv: str
    rule: ExitRule | RoutingRule


def full_depth(program: Program, slots: int) -> Policy:
    """Return the policy under which every token runs every depth, with K/V as the model has them, in caches of
    ``slots`` slots a sequence."""
    rule = ExitRule("never", program.depths, never=True)
    if program.shares_kv:
        return Policy("never", "shared", "shared", rule)
    if slots < program.kv_slots:
        return Policy("never", LAST_DEPTHS[slots], "shared", rule)
    return Policy("never", "per-depth", "exact", rule)
