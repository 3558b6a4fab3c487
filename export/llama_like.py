"""Models of Llama's layers, described in a few numbers (``Spec``), as programs.

The families of such models make a spec, because ties and deltas are the same search in all of them.
"""

from __future__ import annotations

from ..runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer, llama
from ..runtime.model.ops import Embed
from ..runtime.model.program import Carry, Loop, Program
from ..runtime.model.rotary import Rotation
from ..runtime.model.weights import Delta, Matrix, Weight
from ..runtime.spec import Segment, Spec


def program_of(spec: Spec) -> Program:
    """The program of a model of Llama layers."""
    weights: dict[str, Weight] = {}
    stages, table = spec.stages, Matrix({"embed": spec.vocab_size}, spec.hidden_size)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table)))
    prologue = w.stage(_segments(w, spec, stages.prologue, "embedded", None))
    w = Writer(weights, "state")
    at = None if stages.depths > 1 else 0
    out = _segments(w, spec, stages.block, "state", at)
    if spec.loop_norm:
        out = w.norm(out, "next", "norm", spec.hidden_size, NormKind(spec.norm_eps))
    block = w.stage(out)
    w = Writer(weights, "state")
    epilogue = w.stage(_segments(w, spec, stages.epilogue, "state", None))
    w, x = Writer(weights, "state"), "state"
    if not spec.loop_norm:
        x = w.norm(x, "normed", "norm", spec.hidden_size, NormKind(spec.norm_eps))
    head = table if spec.tied_embedding else Matrix({"head": spec.vocab_size}, spec.hidden_size)
    w.linear(x, ("logits",), "embed" if spec.tied_embedding else "head", head)
    return Program(
        family=spec.family,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        prologue=prologue,
        loop=Loop((Carry("state", spec.hidden_size),), (block,), (0,) * stages.depths),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
        exit_gate=spec.exit_gate,
        routing=spec.routing,
        bos_token_id=spec.bos_token_id,
        eos_token_ids=spec.eos_token_ids,
    )


def _segments(w: Writer, spec: Spec, numbers: tuple[int, ...], x: str, at: int | None) -> str:
    """The layers of a stage, ``x`` → what they give. ``at`` None: each segment is applied once, at the lane's depth."""
    for s in numbers:
        segment = spec.segments[s]
        layer = _layer(spec, segment)
        for repeat in range(segment.repeats) if at is not None else (None,):
            own = repeat if repeat is not None or segment.repeats > 1 else 0
            for j in range(segment.layers):
                x = llama(w, x, f"segments.{s}.layers.{j}", layer, own, spec.sandwich_norms)
    return x


def _layer(spec: Spec, segment: Segment) -> Layer:
    shared = spec.kv == "shared" and spec.depths > 1 and segment.repeats > 1
    return Layer(
        spec.hidden_size,
        Attention(
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            Rotation(spec.head_dim, spec.rope_theta),
            window=spec.sliding_window,
            slot="first" if shared else "own",
        ),
        Mlp(spec.intermediate_size),
        NormKind(spec.norm_eps),
        depths=segment.repeats,
        norm_rows=segment.per_repeat_norms,
        own_attention=segment.per_repeat_attention,
        deltas={name: Delta(rank) for name, rank in segment.lora.items()},
    )
