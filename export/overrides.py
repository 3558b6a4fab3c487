"""What a request changes in the model that the checkpoint describes: its context, its KV cache."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

from msgspec import structs

from ..runtime.errors import UsageError
from ..runtime.spec import Spec
from .family import Reading

KV: tuple[str, ...] = get_args(get_type_hints(Spec)["kv"])
"""The KV policies that an export can be asked for."""


def overridden(
    reading: Reading, context: int | None = None, kv: str | None = None, window: int | None = None
) -> Reading:
    """``reading`` with what is not None in place of what its family declares.

    ``context``: tokens of context, at most the model's own. ``kv``: one of ``KV``. ``window``: tokens that
    attention sees, the newest included, at most the context; a window of the whole context is none.
    UsageError for what the model cannot do.
    """
    spec = reading.spec
    if context is not None:
        if not 1 <= context <= spec.context_length:
            raise UsageError(f"context is {context}, wanted 1 to {spec.context_length}, the model's own")
        spec = structs.replace(spec, context_length=context)
    if window is not None:
        if not 1 <= window <= spec.context_length:
            raise UsageError(f"window is {window}, wanted 1 to {spec.context_length}, the context")
        spec = structs.replace(spec, sliding_window=window)
    if spec.sliding_window is not None and spec.sliding_window >= spec.context_length:
        spec = structs.replace(spec, sliding_window=None)
    if kv is not None:
        spec = _with_kv(spec, kv)
    return replace(reading, spec=spec)


def _with_kv(spec: Spec, kv: str) -> Spec:
    if kv not in KV:
        raise UsageError(f"unknown KV policy {kv!r}: choose from {', '.join(KV)}")
    if kv == "shared" and spec.depths < 2:
        raise UsageError(
            "the model has no loop of two depths or more: nothing can share K and V; leave --kv out"
        )
    if kv == "shared" and any(segment.per_repeat_attention for segment in spec.segments):
        raise UsageError(
            "attention has matrices for each depth and makes K and V for each: --kv shared is not for it; leave it out"
        )
    return structs.replace(spec, kv=kv)
