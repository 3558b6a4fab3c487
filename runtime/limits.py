"""What the numbers of a spec may be: read from files of other people, they become sizes, divisors and loops.

A problem is a text: the field, what was found, what was wanted. Nothing is raised here: who reads knows which error
it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from .model.limits import MAX_LAYERS, MAX_NUMBERS, MAX_SIZE, within
from .spec import PROJECTIONS, Routing, Segment, Spec

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "context_length")


def spec_problems(spec: Spec) -> Iterator[str]:
    """What is wrong with the numbers of ``spec``, one after the other."""
    for size in _SIZES:
        yield from within(f"spec.{size}", getattr(spec, size), 1, MAX_SIZE)
    if spec.heads < 1 or spec.kv_heads < 1 or spec.heads % spec.kv_heads:
        yield f"spec.heads is {spec.heads}, no multiple of spec.kv_heads, {spec.kv_heads}"
    if spec.head_dim % 2:
        yield f"spec.head_dim is {spec.head_dim}, wanted an even number: RoPE turns halves"
    yield from within("spec.norm_eps", spec.norm_eps, 0, 1)
    yield from within("spec.rope_theta", spec.rope_theta, 1e-6, 1e30)
    if spec.sliding_window is not None:
        yield from within("spec.sliding_window", spec.sliding_window, 1, spec.context_length)
    for width in (spec.vocab_size, spec.intermediate_size, spec.heads * spec.head_dim):
        if prod((spec.hidden_size, width)) > MAX_NUMBERS:
            yield f"spec has a matrix of {spec.hidden_size} × {width}, more than {MAX_NUMBERS} numbers"
    if not 1 <= len(spec.segments) <= MAX_LAYERS:
        yield f"spec.segments are {len(spec.segments)}, wanted 1 to {MAX_LAYERS}"
    for i, segment in enumerate(spec.segments):
        yield from _segment_problems(f"spec.segments[{i}]", segment)
    if spec.applied_layers > MAX_LAYERS:
        yield f"spec.segments apply {spec.applied_layers} layers, wanted {MAX_LAYERS} at most"
    for name, ids in (("bos_token_id", (spec.bos_token_id or 0,)), ("eos_token_ids", spec.eos_token_ids)):
        for number in ids:
            yield from within(f"spec.{name}", number, 0, MAX_SIZE)
    if spec.kv == "shared" and any(segment.per_repeat_attention for segment in spec.segments):
        yield "spec.kv is shared, and attention has matrices for each depth: wanted per-depth K and V"
    if spec.routing is not None:
        yield from _routing_problems(spec.routing, spec.depths)


def _segment_problems(name: str, segment: Segment) -> Iterator[str]:
    yield from within(f"{name}.layers", segment.layers, 1, MAX_LAYERS)
    yield from within(f"{name}.repeats", segment.repeats, 1, MAX_LAYERS)
    if segment.per_repeat_attention and segment.repeats < 2:
        yield f"{name}.per_repeat_attention is for segments that repeat, this one is applied once"
    for projection, rank in segment.lora.items():
        if projection not in PROJECTIONS:
            yield f"{name}.lora has {projection!r}, wanted one of {', '.join(PROJECTIONS)}"
        yield from within(f"{name}.lora.{projection}", rank, 1, MAX_SIZE)


def _routing_problems(routing: Routing, depths: int) -> Iterator[str]:
    if depths < 2:
        yield f"spec.routing is for models of several depths, this one has {depths}"
    yield from within("spec.routing.alpha", routing.alpha, -1e30, 1e30)
    yield from within("spec.routing.temperature", routing.temperature, 1e-9, 1e30)
    if routing.capacity and len(routing.capacity) != depths:
        yield f"spec.routing.capacity has {len(routing.capacity)} shares, wanted one for each of {depths} depths"
    for share in routing.capacity:
        yield from within("spec.routing.capacity", share, 0, 1)
