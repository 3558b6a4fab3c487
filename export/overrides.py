"""What a request changes in the model that the checkpoint describes: its context, its KV cache, its window, its
depth."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from ..runtime.errors import UsageError
from ..runtime.model.facts import attentions
from ..runtime.model.layer_loop import layer_loop
from ..runtime.model.program import Program
from ..runtime.model.transform import fitted, sharing_kv, windowed, with_depths
from .family import Reading

KV = ("per-depth", "shared")
"""The KV policies that an export can be asked for."""
LOOPS = ("found", "layers")
"""The loops that an export can be asked for."""


def overridden(
    reading: Reading,
    context: int | None = None,
    kv: str | None = None,
    window: int | None = None,
    depth: int | None = None,
    loop: str | None = None,
) -> Reading:
    """Return ``reading`` with what is not None in place of what its family declares.

    ``context``: tokens of context, at most the model's own. ``kv``: one of ``KV``. ``window``: tokens that
    attention sees, the newest included, at most the context; a window of the whole context is none. ``depth``: how
    often the loop runs, unless the bundle is run at another depth. ``loop``: one of ``LOOPS``; ``layers`` makes each
    applied layer of a model without a loop a depth of one. UsageError for what the model cannot do.
    """
    program = reading.program
    if program.encoder and (
        given := [name for name, value in (("kv", kv), ("window", window)) if value is not None]
    ):
        raise UsageError(f"an encoder keeps no K/V, found {given[0]}; leave --{given[0]} out")
    if context is not None:
        if not 1 <= context <= program.context_length:
            raise UsageError(f"context is {context}, wanted 1 to {program.context_length}, the model's own")
        program = structs.replace(program, context_length=context)
    if window is not None:
        if not 1 <= window <= program.context_length:
            raise UsageError(f"window is {window}, wanted 1 to {program.context_length}, the context")
        if len(own := {op.window for op in attentions(program)}) > 1:
            found = ", ".join(sorted(str(each or "none") for each in own))
            raise UsageError(f"layers of this model have windows of their own ({found}); leave --window out")
        program = windowed(program, window)
    program = fitted(program)
    if loop not in (None, *LOOPS):
        raise UsageError(f"unknown loop {loop!r}: choose from {', '.join(LOOPS)}")
    if loop == "layers":
        program = layer_loop(program)
    if depth is not None:
        program = with_depths(program, depth)
    if kv is not None:
        program = _with_kv(program, kv)
    return replace(reading, program=program)


def _with_kv(program: Program, kv: str) -> Program:
    if kv not in KV:
        raise UsageError(f"unknown KV policy {kv!r}: choose from {', '.join(KV)}")
    if kv == "shared" and program.depths < 2:
        raise UsageError("the model has no loop of two depths or more: nothing can share K/V; leave --kv out")
    if kv == "shared" and program.own_matrices:
        raise UsageError(
            "attention has matrices for each depth and makes K/V for each: --kv shared is not for it; leave it out"
        )
    return sharing_kv(program, kv == "shared")
