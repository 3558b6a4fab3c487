"""Checks that a function's states are read and written in a single sequence, as Core ML may assume.

A device updates a state in place. So once a state's value was updated, no operator may use an older one, and the new
one must be written before the state is read again; else numbers depend on the order of execution. Of coremltools' own
passes one builds such programs (remove_redundant_ops merges two reads across a write).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ...errors import ExportError

_USERS = frozenset({"slice_update", "slice_by_index", "write_state"})
"""Operators that may take the value of a state: others might keep a view of it."""


class OperatorStep(Protocol):
    """One operator of a function: its type, the names of the values that it takes, and of those it makes."""

    @property
    def kind(self) -> str:
        """The operator's type."""

    @property
    def uses(self) -> dict[str, tuple[str, ...]]:
        """The names of the values that it takes, by input."""

    @property
    def makes(self) -> tuple[str, ...]:
        """The names of the values that it makes."""


def check_states(function: str, steps: Iterable[OperatorStep], states: Iterable[str]) -> None:
    """Raise ExportError when ``function`` uses a state's value that was updated since, or reads before it wrote."""
    current: dict[str, set[str]] = {state: set() for state in states}
    owner: dict[str, str] = {}
    stale: set[str] = set()
    pending: set[str] = set()
    for step in steps:
        used = [name for names in step.uses.values() for name in names]
        if old := stale.intersection(used):
            raise ExportError(
                f"{function}: {step.kind} uses {min(old)}, a state's value that was updated before"
            )
        if step.kind == "read_state":
            (state,) = step.uses["input"]
            if state in pending:
                raise ExportError(f"{function}: {state} is read before its update is written")
            current[state].add(step.makes[0])
            owner[step.makes[0]] = state
            continue
        held = [name for name in used if name in owner]
        if held and step.kind not in _USERS:
            raise ExportError(
                f"{function}: {step.kind} takes the whole state {owner[held[0]]}; slice it first"
            )
        if step.kind == "slice_update" and (state := owner.get(step.uses["x"][0], "")):
            stale |= current[state]
            current[state] = {step.makes[0]}
            owner[step.makes[0]] = state
            pending.add(state)
        elif step.kind == "write_state":
            (state,), (value,) = step.uses["input"], step.uses["data"]
            if value not in current[state]:
                raise ExportError(
                    f"{function}: {state} is written with {value}, which is not its newest value"
                )
            pending.discard(state)
    if pending:
        raise ExportError(f"{function}: the update of {min(pending)} is never written")
