"""HRM-Text: two stacks of layers, a slow one and a fast one, that take turns on two states.

The slow state is the scaled embedding, the fast one a vector that every token starts with. A cycle runs the fast stack
some times on the sum of the two states, then the slow one once; the embedding does not come in again. Norms have no
weights, and attention is multiplied by a gate of its input. With ``prefix_lm`` the tokens of a prompt see each other,
as they were trained to; those that are generated see what is before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...runtime.errors import CheckpointError
from ...runtime.model import blocks
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer
from ...runtime.model.ops import Act, Add, Attend, Embed, Mul, Norm, Rotate, Scale
from ...runtime.model.program import Carry, Loop, Program, Stage
from ...runtime.model.weights import Matrix, Vector, Weight, canonical
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import check_keys
from .config_values import flag, number, size
from .llama_config import LlamaConfig, read_sizes
from .reader import FusedRows, Reader, Source
from .ties import MAX_LAYERS, LayerNames

KEYS = (
    "H_cycles", "L_bp_cycles", "L_cycles", "auto_map", "embedding_scale", "initializer_range", "num_layers_per_stack",
    "prefix_lm",
)  # fmt: skip
STACKS = ("L_module", "H_module")
"""The fast stack and the slow one, which are blocks 0 and 1 of the loop."""
PARTS = {
    "attention_gate.weight": Source("attn.gqkv_proj.weight", FusedRows(0, 4)),
    "q_proj.weight": Source("attn.gqkv_proj.weight", FusedRows(1, 4)),
    "k_proj.weight": Source("attn.gqkv_proj.weight", FusedRows(2, 4)),
    "v_proj.weight": Source("attn.gqkv_proj.weight", FusedRows(3, 4)),
    "o_proj.weight": Source("attn.o_proj.weight"),
    "gate_proj.weight": Source("mlp.gate_up_proj.weight", FusedRows(0, 2)),
    "up_proj.weight": Source("mlp.gate_up_proj.weight", FusedRows(1, 2)),
    "down_proj.weight": Source("mlp.down_proj.weight"),
}
"""The tensors of a layer."""


class HrmNames(LayerNames):
    """The names of a checkpoint with two stacks; its layers are those of one."""

    whose, embedding, stack = "HRM-Text", "model.embed_tokens.weight", "model.L_module.layers"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inside = f"{self.prefix}model."


@dataclass(frozen=True)
class Cycles:
    """How often the slow stack runs, and how often the fast one before each of its runs; and what tokens see."""

    slow: int
    fast: int
    embed_scale: float
    mask: Literal["causal", "prefix"]


class HrmTextFamily:
    """model_type "hrm_text"."""

    name = "hrm_text"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is an HRM-Text config."""
        return checkpoint.config.get("model_type") == "hrm_text"

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, KEYS, where)
        sizes = read_sizes({"head_dim": 128} | config, where)
        names = HrmNames(checkpoint)
        layers = size(config, "num_layers_per_stack", where, sizes.layers)
        scale = number(config, "embedding_scale", where, 1 / number(config, "initializer_range", where, 0.02))
        cycles = Cycles(
            size(config, "H_cycles", where),
            size(config, "L_cycles", where),
            scale,
            "prefix" if flag(config, "prefix_lm", where, True) else "causal",
        )
        if names.layers != layers or cycles.slow * (cycles.fast + 1) * layers > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: num_layers_per_stack {layers}, H_cycles {cycles.slow}, L_cycles {cycles.fast}, while the "
                f"weights have stacks of {names.layers} layers; wanted equal numbers of layers, and {MAX_LAYERS} "
                "applied at most"
            )
        reader = Reader(names)
        tied = reader.head_is_embedding(f"{names.prefix}lm_head.weight", sizes.tie_word_embeddings)
        program = program_of(sizes, layers, cycles, tied)
        stored = {
            "embed.weight": names.embed,
            "fast_start.weight": f"{names.inside}z_L_init",
            "head.weight": f"{names.prefix}lm_head.weight",
        }
        for tensor in canonical(program.weights):
            if (name := stored.get(tensor.name)) is not None:
                reader.plain(tensor.name, name, tensor.shape)
                continue
            stack, number_, part = tensor.name.split(".", 2)
            own = PARTS[part]
            source = Source(f"{names.inside}{stack}.layers.{number_}.{own.name}", own.rows)
            reader.plain(tensor.name, source, tensor.shape)
        reader.refuse_leftovers("HRM-Text's two stacks, whose norms have no weights")
        return Reading(program, reader.tensors, frozenset(reader.used))


def program_of(sizes: LlamaConfig, layers: int, cycles: Cycles, tied: bool) -> Program:
    """Return the model's program: ``cycles.fast`` runs of block 0, then one of block 1, ``cycles.slow`` times."""
    weights: dict[str, Weight] = {}
    width, eps = sizes.hidden_size, sizes.norm_eps
    layer = Layer(
        width,
        Attention(
            sizes.heads,
            sizes.kv_heads,
            sizes.head_dim,
            sizes.rotation,
            mask=cycles.mask,
        ),
        Mlp(sizes.intermediate_size),
        NormKind(eps),
    )

    def block(stack: str) -> Stage:
        w, x = Writer(weights, "state", "fast"), "sum"
        w.add(Add("state", "fast", x))
        for j in range(layers):
            x = _layer(w, x, f"{stack}.{j}", layer)
        w.add(Norm(x, "next", "rms", eps))
        return w.stage(*(("state", "next") if stack == STACKS[0] else ("next", "fast")))

    table = Matrix({"embed": sizes.vocab_size}, width)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table), cycles.embed_scale))
    w.add(Scale("embedded", "ones", 0.0, 1.0))
    w.add(Scale("ones", "start", weight=w.weight("fast_start", Vector(width))))
    prologue = w.stage("embedded", "start")
    epilogue = Writer(weights, "state", "fast").stage("state")
    w = Writer(weights, "state")
    head = table if tied else Matrix({"head": sizes.vocab_size}, width)
    w.linear("state", ("logits",), "embed" if tied else "head", head)
    return Program(
        family=HrmTextFamily.name,
        vocab_size=sizes.vocab_size,
        context_length=sizes.context_length,
        prologue=prologue,
        loop=Loop(
            (Carry("state", width), Carry("fast", width)),
            tuple(block(stack) for stack in STACKS),
            ((0,) * cycles.fast + (1,)) * cycles.slow,
        ),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
        bos_token_id=sizes.bos_token_id,
        eos_token_ids=sizes.eos_token_ids,
    )


def _layer(w: Writer, x: str, prefix: str, layer: Layer) -> str:
    """Write x + o(σ(gate) · attention(norm x)), then x + mlp(norm x)."""
    a, eps = layer.attention, layer.norm.eps
    inner = a.heads * a.head_dim
    w.enter_layer(x)
    h, gate, q, k, v, share, mixed, gated, out, g = (
        w.name(value)
        for value in ("h", "gate_logit", "q", "k", "v", "share", "mixed", "mixed_gated", "a", "g")
    )
    w.add(Norm(x, h, "rms", eps))
    parts = dict.fromkeys(("attention_gate", "q_proj", "k_proj", "v_proj"), inner)
    w.linear(h, (gate, q, k, v), f"{prefix}.qkv_proj", Matrix(parts, layer.width))
    assert a.rotation is not None
    for value in (q, k):
        w.add(Rotate(value, f"{value}_turned", a.heads, a.rotation))
    w.add(
        Attend(
            f"{q}_turned", f"{k}_turned", v, mixed, a.heads, a.kv_heads, a.head_dim, a.head_dim**-0.5, w.cache(),
            a.mask,
        )
    )  # fmt: skip
    w.add(Act(gate, share, "sigmoid"))
    w.add(Mul(mixed, share, gated))
    w.linear(gated, (out,), f"{prefix}.o_proj", Matrix({"o_proj": layer.width}, inner))
    x = blocks.add(w, x, out, "x")
    w.add(Norm(x, g, "rms", eps))
    return blocks.add(w, x, blocks.mlp(w, g, prefix, layer), "out")
