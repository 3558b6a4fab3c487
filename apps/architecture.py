"""What a model is, in numbers and words: its layers, sizes, ops and depths."""

from __future__ import annotations

from typing import Any

from ..runtime.model import facts
from ..runtime.model.program import Program
from .quantities import byte_count, count, deltas, layout


def model_facts(program: Program, parameters: int, unrolled: int) -> dict[str, Any]:
    """The architecture's numbers, for machines."""
    return {
        "family": program.family,
        "layout": layout(program),
        "segments": facts.runs(program),
        "depths": program.depths,
        "open_ended": program.loop.open_ended,
        "layers": facts.stored_layers(program),
        "applied_layers": program.applied_layers,
        "parameters": parameters,
        "unrolled_parameters": unrolled,
        "delta_parameters": facts.delta_parameters(program),
        "ops": facts.op_kinds(program),
        "tied_embedding": program.tied_embedding,
        "kv_bytes_per_token": program.kv_bytes_per_token,
        "kv": "shared" if program.shares_kv else "per-depth",
        "sliding_window": program.window,
        "routing": program.routing,
        "exit_gate": program.exit_gate,
        "context_length": program.context_length,
    }


def model_rows(program: Program, parameters: int, unrolled: int) -> list[tuple[str, str]]:
    """The architecture's numbers, for people."""
    layers = facts.stored_layers(program)
    loop = f"{program.depths} depths" if program.depths > 1 else "no depth loop on the host"
    if program.loop.open_ended:
        loop += " or any other number (--depth)"
    carries = program.loop.carries
    width = " + ".join(str(carry.width) for carry in carries)
    if len(carries) > 1:
        width += f" ({', '.join(carry.name for carry in carries)})"
    head = "the head is the embedding" if program.tied_embedding else "the head has weights of its own"
    head = head if program.head.ops else "no head"
    return [
        ("family", program.family),
        ("layers", f"{layout(program)}: {layers} stored, {program.applied_layers} applied, {loop}"),
        ("width", f"{width}, MLP {facts.mlp_size(program)}"),
        ("attention", attention_of(program)),
        ("ops", ", ".join(facts.op_kinds(program))),
        ("vocabulary", f"{program.vocab_size} tokens; {head}"),
        (
            "parameters",
            f"{count(parameters)}; unrolled {count(unrolled)}, {unrolled / parameters:.2f} times as many",
        ),
        ("deltas", f"{deltas(program)}{_delta_share(program, parameters)}"),
        (
            "context",
            f"{program.context_length} tokens, {byte_count(program.kv_bytes_per_token)} of KV cache a token",
        ),
        ("depth", depth_rules(program)),
    ]


def attention_of(program: Program) -> str:
    """The sizes of attention, in words; of the first one."""
    found = facts.attention(program)
    return f"{found.heads} heads, {found.kv_heads} KV heads of {found.head_dim}" if found else "none"


def depth_rules(program: Program) -> str:
    """KV slots, window, gate and router, in words."""
    parts = ["the depths share K/V" if program.shares_kv else "K/V for each depth"]
    if program.encoder:
        parts = ["an encoder: tokens see the whole text, and nothing is kept"]
    if program.window is not None:
        parts.append(f"a window of {program.window} tokens")
    if program.exit_gate:
        parts.append("an exit gate")
    if (routing := program.routing) is not None:
        shares = ", ".join(f"{share:.0%}" for share in routing.capacity)
        parts.append(f"{routing.kind}-choice router{f' ({shares} of the tokens)' if shares else ''}")
    return "; ".join(parts)


def _delta_share(program: Program, parameters: int) -> str:
    numbers = facts.delta_parameters(program)
    return f"; {count(numbers)} parameters, {numbers / parameters:.1%}" if numbers else ""
