"""IQuestLoopCoder and LoopCoder-V2 (PLT, arXiv 2510.24824): a looped stack whose later loops attend twice.

A loop after the first attends to the first one's keys, and through a window to its own, and a gate of each head mixes
the two. The gate reads the rotated query of the head, or, in some PLT models, the normed input of the layer. PLT
shifts: a later loop reads the embedding and the output of the loop before it at the token before, so that loop l of a
token and loop l − 1 of the next one can run together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...runtime.errors import CheckpointError
from ...runtime.model import blocks
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer
from ...runtime.model.ops import Act, Add, AttendTwice, Embed, Rotate, Scale, Shift
from ...runtime.model.program import Carry, Loop, Program
from ...runtime.model.weights import Matrix, Vector, Weight, canonical
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from .config_keys import check_keys
from .config_values import flag, number, size
from .folded import StackNames, llama_sources
from .llama_config import LlamaConfig, read_sizes
from .llama_names import NORMS
from .reader import Reader
from .ties import MAX_LAYERS

KEYS = {
    "iquestloopcoder": ("loop_num", "loop_window_size", "auto_map"),
    "iquestpltcoder": (
        "plt_num_loops", "plt_window_size", "plt_normalize_per_loop", "plt_emb_scale", "plt_hidden_scale",
        "plt_gate_use_hidden_states", "auto_map",
    ),
}  # fmt: skip
"""The keys of each model_type beside Llama's."""
GATES = (
    "model.layers.{}.self_attn.plt_gate",
    "model.layers.{}.self_attn.loop_gate_proj",
    "model.gate_projections.{}",
)
"""Where the gate of a layer may be."""


@dataclass(frozen=True)
class Rules:
    """How a model loops. ``window``: how many of its own keys a later loop sees. ``shift``: (scale of the embedding,
    scale of the shifted state) of PLT."""

    loops: int
    window: int
    shift: tuple[float, float] | None = None
    norm_each_loop: bool = False
    hidden_gate: bool = False


class LoopCoderFamily:
    """model_type "iquestloopcoder" or "iquestpltcoder"."""

    name = "loopcoder"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a config of one of the two."""
        return str(checkpoint.config.get("model_type")) in KEYS

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, KEYS[config["model_type"]], where)
        rules, sizes = read_rules(config, where), read_sizes(config, where)
        names = StackNames(checkpoint, "LoopCoder", llama_sources((), NORMS))
        if names.layers != sizes.layers or rules.loops * sizes.layers > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: num_hidden_layers {sizes.layers} × {rules.loops} loops, while the weights have "
                f"{names.layers} layers; wanted equal numbers of layers and at most {MAX_LAYERS} together"
            )
        reader = Reader(names)
        tied = reader.head_is_embedding(f"{names.prefix}lm_head.weight", sizes.tie_word_embeddings)
        program = program_of(rules, sizes, tied)
        _read_tensors(reader, program, rules, sizes)
        reader.refuse_leftovers("LoopCoder's layers and gates")
        return Reading(program, reader.tensors, frozenset(reader.used))


def read_rules(config: Mapping[str, Any], where: str) -> Rules:
    """Return how the model of a config loops; CheckpointError names a key that is missing, malformed or not
    supported."""
    if config["model_type"] == "iquestloopcoder":
        return Rules(size(config, "loop_num", where), size(config, "loop_window_size", where))
    window = config.get("plt_window_size")
    if (
        not isinstance(window, list)
        or len(window) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in window)
        or window[1]
    ):
        raise CheckpointError(
            f"{where}: plt_window_size is {shown(window)}; wanted two numbers, the last one 0"
        )
    return Rules(
        size(config, "plt_num_loops", where),
        window[0] + 1,  # the token's own key beside the ones to the left of it
        (number(config, "plt_emb_scale", where, 1.0), number(config, "plt_hidden_scale", where, 1.0)),
        flag(config, "plt_normalize_per_loop", where, False),
        flag(config, "plt_gate_use_hidden_states", where, False),
    )


def program_of(rules: Rules, sizes: LlamaConfig, tied: bool) -> Program:
    """Return the model's program. What differs between loops is in PLT's scales, a row for each."""
    weights: dict[str, Weight] = {}
    width, normal = sizes.hidden_size, NormKind(sizes.norm_eps)
    attention = Attention(sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.rotation)
    layer = Layer(width, attention, Mlp(sizes.intermediate_size), normal)
    carried = ("embedded",) if rules.shift is None else ("embedded", "embedded")
    table = Matrix({"embed": sizes.vocab_size}, width)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table)))
    prologue = w.stage(*carried)
    carries = ("state",) if rules.shift is None else ("state", "entered")
    w = Writer(weights, *carries)
    x = "state"
    if rules.shift is not None:
        w.add(Shift("state", "before", 0))
        for value, name in (("entered", "embed_scale"), ("before", "state_scale")):
            w.add(Scale(value, f"{value}_scaled", weight=w.weight(name, Vector(width, rules.loops))))
        w.add(Add("entered_scaled", "before_scaled", "input"))
        x = "input"
    for j in range(sizes.layers):
        x = _layer(w, x, f"layers.{j}", layer, rules)
    if rules.norm_each_loop:
        x = w.norm(x, "next", "norm", width, normal)
    block = w.stage(x, *carries[1:])
    epilogue = Writer(weights, *carries).stage("state")
    w, x = Writer(weights, "state"), "state"
    if not rules.norm_each_loop:
        x = w.norm("state", "normed", "norm", width, normal)
    head = table if tied else Matrix({"head": sizes.vocab_size}, width)
    w.linear(x, ("logits",), "embed" if tied else "head", head)
    return Program(
        family=LoopCoderFamily.name,
        vocab_size=sizes.vocab_size,
        context_length=sizes.context_length,
        prologue=prologue,
        loop=Loop(tuple(Carry(name, width) for name in carries), (block,), (0,) * rules.loops),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
        bos_token_id=sizes.bos_token_id,
        eos_token_ids=sizes.eos_token_ids,
    )


def _layer(w: Writer, x: str, prefix: str, layer: Layer, rules: Rules) -> str:
    """Write a layer of Llama whose attention reads the first loop's keys beside its own."""
    a = layer.attention
    w.enter_layer(x)
    h = blocks.norm(w, x, "h", prefix, "attention_norm", layer, None)
    q, k, v, gate = (w.name(value) for value in ("q", "k", "v", "share"))
    parts = {
        "q_proj": a.heads * a.head_dim,
        "k_proj": a.kv_heads * a.head_dim,
        "v_proj": a.kv_heads * a.head_dim,
    }
    w.linear(h, (q, k, v), f"{prefix}.qkv_proj", Matrix(parts, layer.width))
    assert a.rotation is not None
    w.add(Rotate(q, f"{q}_turned", a.heads, a.rotation))
    w.add(Rotate(k, f"{k}_turned", a.kv_heads, a.rotation))
    read, width = f"{q}_turned", a.heads * a.head_dim
    if rules.hidden_gate:
        read, width = blocks.norm(w, x, "gate_in", prefix, "gate_norm", layer, None), layer.width
    w.linear(read, (f"{gate}_logit",), f"{prefix}.gate", Matrix({"gate": a.heads}, width, bias=True))
    w.add(Act(f"{gate}_logit", gate, "sigmoid"))
    mixed, out = w.name("mixed"), w.name("a")
    w.add(
        AttendTwice(
            f"{q}_turned", f"{k}_turned", v, gate, mixed, a.heads, a.kv_heads, a.head_dim, a.head_dim**-0.5,
            w.cache(), rules.window,
        )
    )  # fmt: skip
    w.linear(mixed, (out,), f"{prefix}.o_proj", Matrix({"o_proj": layer.width}, a.heads * a.head_dim))
    x = blocks.add(w, x, out, "x")
    m = blocks.mlp(w, blocks.norm(w, x, "g", prefix, "mlp_norm", layer, None), prefix, layer)
    return blocks.add(w, x, m, "out")


def _read_tensors(reader: Reader, program: Program, rules: Rules, sizes: LlamaConfig) -> None:
    """Add the loaders of all tensors of ``program``."""
    names, sources = reader.names, llama_sources((), NORMS)
    outer = {
        "embed.weight": names.embed,
        "norm.weight": f"{names.prefix}model.norm.weight",
        "head.weight": f"{names.prefix}lm_head.weight",
    }
    scales = dict(zip(("embed_scale.weight", "state_scale.weight"), rules.shift or (), strict=False))
    for tensor in canonical(program.weights):
        if tensor.name in scales:
            first = 1.0 if tensor.name.startswith("embed") else 0.0
            shape = (rules.loops, *tensor.shape)
            reader.tensors[tensor.name] = partial(_rows, first, scales[tensor.name], shape)
        elif (stored := outer.get(tensor.name)) is not None:
            reader.plain(tensor.name, stored, tensor.shape)
        else:
            _, number, part = tensor.name.split(".", 2)
            if part in sources:
                reader.plain(tensor.name, f"{names.inside}{number}.{sources[part].name}", tensor.shape)
                continue
            gate = _gate(reader, number)
            if part == "gate_norm.weight":
                reader.plain(tensor.name, f"{gate}.gate_norm.weight", tensor.shape)
            elif part == "gate.bias" or rules.hidden_gate:
                reader.plain(tensor.name, f"{gate}.{part.removeprefix('gate.')}", tensor.shape)
            else:
                reader.plain(tensor.name, f"{gate}.weight", (sizes.heads, sizes.head_dim))
                reader.tensors[tensor.name] = partial(_by_head, reader.tensors[tensor.name])


def _gate(reader: Reader, number: str) -> str:
    """Return the name of the gate of a layer, without its last part."""
    found = [f"{reader.names.prefix}{name.format(number)}" for name in GATES]
    return next((name for name in found if f"{name}.weight" in reader.checkpoint.names), found[0])


def _by_head(load: Loader) -> torch.Tensor:
    """Return the rows [H, d] as a matrix [H, H · d]: row h reads the dims of head h alone."""
    matrix: torch.Tensor = torch.block_diag(*load())
    return matrix.contiguous()


def _rows(first: float, later: float, shape: tuple[int, ...]) -> torch.Tensor:
    """Return [loops, D] of the numbers ``first`` in the first row, and ``later`` in the others."""
    rows = torch.full(shape, later)
    rows[0] = first
    return rows
