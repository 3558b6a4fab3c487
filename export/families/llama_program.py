"""Programs of models of Llama's layers, described in a few numbers (``Spec``), and the inverse.

The families of such models make a spec, because ties and deltas are the same search in all of them.
"""

from __future__ import annotations

from msgspec import structs

from ...runtime.errors import ExportError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer, llama
from ...runtime.model.decoder import decoder
from ...runtime.model.facts import attention, mlp_size
from ...runtime.model.ops import Norm, Op, Scale, kind, writes
from ...runtime.model.program import Program, Stage
from ...runtime.model.rotation import Rotation
from ...runtime.model.weights import Delta, Matrix, Vector
from .llama_spec import PROJECTIONS, Segment, Spec


def program_of(spec: Spec) -> Program:
    """Return the program of a model of Llama layers."""

    encoded = {
        f"segments.{s}.layers.{segment.layers - 1}"
        for s, segment in enumerate(spec.segments)
        if segment.encoded
    }

    def block(w: Writer, x: str, prefix: str, layer: Layer, at: int | None) -> str:
        x = llama(w, x, prefix, layer, at, spec.sandwich_norms)
        if prefix not in encoded:
            return x
        vector = w.weight(f"{prefix}.encoding", Vector(spec.hidden_size, layer.depths))
        w.add(Scale(x, w.name("encoded"), weight=vector, at=at))
        return w.name("encoded")

    program = decoder(
        spec.family,
        block,
        [(_layer(spec, segment),) * segment.layers for segment in spec.segments],
        NormKind(spec.norm_eps),
        width=spec.hidden_size,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        tied_embedding=spec.tied_embedding,
        norm_each_depth=spec.loop_norm,
    )
    return structs.replace(
        program,
        exit_gate=spec.exit_gate,
        routing=spec.routing,
        bos_token_id=spec.bos_token_id,
        eos_token_ids=spec.eos_token_ids,
    )


def _layer(spec: Spec, segment: Segment) -> Layer:
    shared = spec.kv == "shared" and spec.depths > 1 and segment.repeats > 1
    return Layer(
        spec.hidden_size,
        Attention(
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            Rotation(spec.head_dim, spec.rope_theta, spec.rope_scaling),
            window=spec.sliding_window,
            slot="first" if shared else "own",
        ),
        Mlp(segment.mlp or spec.intermediate_size),
        NormKind(spec.norm_eps),
        depths=segment.repeats,
        norm_rows=segment.per_repeat_norms,
        own_attention=segment.per_repeat_attention,
        deltas={name: Delta(rank, name in segment.rescaled) for name, rank in segment.lora.items()},
    )


def spec_of(program: Program, who: str = "this edgeloop") -> Spec:
    """Return the numbers of a model of Llama layers; ExportError names the first op that ``who`` does not take."""

    def other(what: str) -> ExportError:
        return ExportError(f"{who} takes Llama's layers only, and the model has {what}")

    found = attention(program)
    rotations = program.rotations
    if found is None or len(rotations) != 1 or len(program.loop.carries) != 1:
        raise other("no attention with one kind of rotation over one state")
    norms = [op for op in program.head.ops if isinstance(op, Norm)]
    spec = Spec(
        family=program.family,
        segments=_segments_of(program),
        vocab_size=program.vocab_size,
        hidden_size=program.width,
        intermediate_size=mlp_size(program),
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        norm_eps=next((op.eps for s in program.stages for op in s.ops if isinstance(op, Norm)), 0.0),
        rope_theta=rotations[0].theta,
        rope_scaling=rotations[0].scaling,
        context_length=program.context_length,
        tied_embedding=program.tied_embedding,
        sandwich_norms=any(name.endswith(".attention_out_norm") for name in program.weights),
        loop_norm=not norms,
        kv="shared" if program.shares_kv else "per-depth",
        sliding_window=found.window,
        exit_gate=program.exit_gate,
        routing=program.routing,
        bos_token_id=program.bos_token_id,
        eos_token_ids=program.eos_token_ids,
    )
    rebuilt = program_of(spec)
    for name, ours, theirs in zip(
        ("prologue", "block", "epilogue", "head"), _four(program), _four(rebuilt), strict=True
    ):
        for op, wanted in zip(ours.ops, theirs.ops, strict=False):
            if op != wanted:
                raise other(f"{_differing(op, wanted)} ({', '.join(writes(op))} in {name})")
    if rebuilt != program:
        others = (n for n, weight in program.weights.items() if rebuilt.weights.get(n) != weight)
        what = next(
            (f"a weight {name} of another kind (as with a bias)" for name in others), "a loop of another kind"
        )
        raise other(what)
    return spec


def _segments_of(program: Program) -> tuple[Segment, ...]:
    """Return segments by the names and kinds of the weights; whether the ops are those is compared afterwards."""
    layers = [name.split(".") for name in program.weights if name.startswith("segments.")]
    counts: dict[int, int] = {}
    for name in layers:
        if len(name) == 5 and name[1].isdigit() and name[3].isdigit():
            counts[int(name[1])] = max(counts.get(int(name[1]), 0), int(name[3]) + 1)
    return tuple(_segment(program, s, counts[s]) for s in sorted(counts))


def _segment(program: Program, number: int, layers: int) -> Segment:
    prefix = f"segments.{number}.layers.0."
    entered = [
        (stage is program.loop.blocks[0], op)
        for stage in program.stages
        for op in stage.ops
        if isinstance(op, Norm) and op.weight == f"{prefix}attention_norm"
    ]
    in_block = any(block for block, _ in entered)
    repeats = program.depths if in_block and program.depths > 1 else len(entered)
    norm = program.weights.get(f"{prefix}attention_norm")
    matrices = [w for n, w in program.weights.items() if n.startswith(prefix) and isinstance(w, Matrix)]
    deltas = {part: delta for w in matrices for part, delta in w.deltas.items()}
    down = program.weights.get(f"{prefix}down_proj")
    mlp = down.columns if isinstance(down, Matrix) else None
    return Segment(
        layers,
        repeats,
        isinstance(norm, Vector) and norm.rows is not None,
        {name: deltas[name].rank for name in PROJECTIONS if name in deltas},
        any(w.copies > 1 for w in matrices),
        None if mlp == mlp_size(program) else mlp,
        tuple(name for name in PROJECTIONS if name in deltas and deltas[name].rescaled),
        f"segments.{number}.layers.{layers - 1}.encoding" in program.weights,
    )


def _four(program: Program) -> tuple[Stage, Stage, Stage, Stage]:
    return program.prologue, program.loop.blocks[0], program.epilogue, program.head


def _differing(op: Op, wanted: Op) -> str:
    """Return how ``op`` differs from ``wanted``, which Llama has there."""
    if type(op) is not type(wanted):
        return f"{kind(op)} where Llama has {kind(wanted)}"
    field = next(name for name in op.__struct_fields__ if getattr(op, name) != getattr(wanted, name))
    return f"{kind(op)} of {field} {getattr(op, field)}"
