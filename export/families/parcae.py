"""Parcae: a loop whose state decays by a learned amount and takes the prologue's output in, at any number of depths.

Step: s ← s · exp(−Δ · exp(A_log)) + Δ · (B e), Δ = softplus(dt_bias), then the layers; what comes in is the same at
every step, so it is made once and carried. Some layers add an embedding of the token to their values, through a gate.
"""

from __future__ import annotations

from functools import partial

import torch

from ...runtime.model import blocks
from ...runtime.model.blocks import Layer, Writer
from ...runtime.model.ops import Act, Add, Attend, Embed, Mul, Norm, Rotate, Scale, Slice, Softcap
from ...runtime.model.program import Carry, Loop, Program
from ...runtime.model.weights import Matrix, Vector, Weight, canonical
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from .huginn import check_rotary_tables
from .parcae_config import ParcaeConfig, ParcaeNames, read_config
from .reader import Reader

PARTS = {
    "attention_norm": "norm_1",
    "mlp_norm": "norm_2",
    "q_proj": "attn.c_q",
    "k_proj": "attn.c_k",
    "v_proj": "attn.c_v",
    "o_proj": "attn.c_proj",
    "value_gate": "attn.ve_gate",
    "up_proj": "mlp.fc",
    "down_proj": "mlp.proj",
}
GATED = 32
"""How many dims of a layer's input the gate of the values reads."""


class ParcaeFamily:
    """_class_name "ParcaeConfig", with diagonal injection; the state before the first depth is zero."""

    name = "parcae"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Parcae config."""
        return checkpoint.config.get("_class_name") == "ParcaeConfig"

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        names = ParcaeNames(checkpoint)
        config = read_config(checkpoint, names)
        reader = Reader(names)
        tied = reader.head_is_embedding(f"{names.prefix}lm_head.weight", config.tied)
        program = program_of(config, tied)
        attention = config.outer.attention
        assert attention.rotation is not None
        check_rotary_tables(reader, attention.rotation, config.context_length)
        for tensor in canonical(program.weights):
            reader.tensors[tensor.name] = _loader(reader, tensor.name, tensor.shape)
        gates = {
            n for n in checkpoint.names if n.endswith("attn.ve_gate.weight")
        }  # some have no embedding to gate
        reader.refuse_leftovers("Parcae's layers, adapter and norms", gates)
        return Reading(program, reader.tensors, frozenset(reader.used | gates))


def program_of(config: ParcaeConfig, tied: bool) -> Program:
    """Return the model's program."""
    weights: dict[str, Weight] = {}
    c, width, inner = config, config.outer.width, config.core.width
    sizes = {
        f"value_{number}": layer.attention.kv_heads * layer.attention.head_dim
        for name, layer in (("prelude", c.outer), ("core_block", c.core), ("coda", c.outer))
        for number in c.valued[name].values()
    }
    carried = [f"value_{number}" for name in ("core_block", "coda") for number in c.valued[name].values()]

    def stack(w: Writer, x: str, name: str, layer: Layer) -> str:
        for j in range(c.layers[name]):
            number = c.valued[name].get(j)
            value = None if number is None else f"value_{number}"
            x = _layer(w, x, f"{name}.{j}", layer, value, c.normed_heads)
        return x

    def embedding(name: str, size: int) -> Matrix:
        return Matrix({name: c.vocab_size}, size)

    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", embedding("embed", width))))
    for value in sizes:
        w.add(Embed("ids", value, w.weight(value, embedding(value, sizes[value]))))
    x = stack(w, "embedded", "prelude", c.outer)
    if c.prelude_norm:
        x = w.norm(x, "prologue_normed", "prologue_norm", width, c.outer.norm)
    w.linear(x, ("read",), "injection", Matrix({"injection": inner}, width))
    w.add(Scale("read", "injected", weight=w.weight("injection_scale", Vector(inner))))
    w.add(Scale("injected", "zeros", 0.0))
    prologue = w.stage("zeros", "injected", *carried)
    w = Writer(weights, "state", "injected", *carried)
    w.add(Scale("state", "decayed", weight=w.weight("decay", Vector(inner))))
    w.add(Add("decayed", "injected", "step"))
    block = w.stage(stack(w, "step", "core_block", c.core), "injected", *carried)
    w = Writer(weights, "state", "injected", *carried)
    w.linear("state", ("read_out",), "read_out", Matrix({"read_out": width}, inner))
    epilogue = w.stage(stack(w, "read_out", "coda", c.outer))
    w = Writer(weights, "state")
    x = w.norm("state", "normed", "norm", width, c.outer.norm)
    logits = "logits" if c.logit_cap is None else "uncapped"
    w.linear(x, (logits,), "embed" if tied else "head", embedding("embed" if tied else "head", width))
    if c.logit_cap is not None:
        w.add(Softcap(logits, "logits", c.logit_cap))
    carries = [("state", inner), ("injected", inner), *((value, sizes[value]) for value in carried)]
    return Program(
        family=ParcaeFamily.name,
        vocab_size=c.vocab_size,
        context_length=c.context_length,
        prologue=prologue,
        loop=Loop(tuple(Carry(*carry) for carry in carries), (block,), (0,) * c.depths, open_ended=True),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
    )


def _layer(w: Writer, x: str, prefix: str, layer: Layer, value: str | None, normed: bool) -> str:
    """Write x + attention(norm x), then x + mlp(norm x); ``value`` joins the attention's values through a gate.

    ``normed``: each head of q and k is normed after it is rotated, without a weight.
    """
    a = layer.attention
    w.enter_layer(x)
    h = blocks.norm(w, x, "h", prefix, "attention_norm", layer, None)
    q, k, v, mixed, out = (w.name(each) for each in ("q", "k", "v", "mixed", "a"))
    parts = {
        "q_proj": a.heads * a.head_dim,
        "k_proj": a.kv_heads * a.head_dim,
        "v_proj": a.kv_heads * a.head_dim,
    }
    w.linear(h, (q, k, v), f"{prefix}.qkv_proj", Matrix(parts, layer.width))
    if value is not None:
        v = _with_value(w, h, v, prefix, layer, value)
    assert a.rotation is not None
    for each, heads in ((q, a.heads), (k, a.kv_heads)):
        w.add(Rotate(each, f"{each}_turned", heads, a.rotation, a.pairs))
        if normed:
            w.add(
                Norm(f"{each}_turned", f"{each}_normed", "rms", torch.finfo(torch.float32).eps, groups=heads)
            )
    end = "normed" if normed else "turned"
    w.add(
        Attend(
            f"{q}_{end}", f"{k}_{end}", v, mixed, a.heads, a.kv_heads, a.head_dim, a.head_dim**-0.5, w.cache()
        )
    )  # fmt: skip
    w.linear(mixed, (out,), f"{prefix}.o_proj", Matrix({"o_proj": layer.width}, a.heads * a.head_dim))
    x = blocks.add(w, x, out, "x")
    m = blocks.mlp(w, blocks.norm(w, x, "g", prefix, "mlp_norm", layer, None), prefix, layer)
    return blocks.add(w, x, m, "out")


def _with_value(w: Writer, h: str, v: str, prefix: str, layer: Layer, value: str) -> str:
    """Write v + 2 σ(gate of the first dims of h) · value, a gate for each KV head; return the sum's name."""
    read, count = h, min(GATED, layer.width)
    if layer.width > GATED:
        read = w.name("gate_in")
        w.add(Slice(h, read, 0, GATED))
    gate, share, double, gated = (w.name(each) for each in ("gate_logit", "share", "double", "value"))
    w.linear(read, (gate,), f"{prefix}.value_gate", Matrix({"value_gate": layer.attention.kv_heads}, count))
    w.add(Act(gate, share, "sigmoid"))
    w.add(Scale(share, double, 2.0))
    w.add(Mul(value, double, gated))
    return blocks.add(w, v, gated, "v_valued")


def _loader(reader: Reader, name: str, shape: tuple[int, ...]) -> Loader:
    """Return the loader of the canonical tensor ``name``; half of down_proj is the MLP's factor of 0.5."""
    inside, prefix = reader.names.inside, reader.names.prefix
    adapter = {key: f"{inside}adapter.{key}" for key in ("A_log", "dt_bias")}
    if name in ("decay.weight", "injection_scale.weight"):
        for key in ("A_log", "dt_bias") if name.startswith("decay") else ("dt_bias",):
            reader.checkpoint.require(adapter[key], shape)
        reader.used |= set(adapter.values())
        load = partial(reader.checkpoint.tensor, adapter["dt_bias"])
        if name.startswith("injection"):
            return lambda: torch.nn.functional.softplus(load())
        rate = partial(reader.checkpoint.tensor, adapter["A_log"])
        return lambda: torch.exp(-torch.nn.functional.softplus(load()) * torch.exp(rate()))
    stored = {
        "embed.weight": reader.names.embed,
        "head.weight": f"{prefix}lm_head.weight",
        "norm.weight": f"{inside}ln_f.weight",
        "prologue_norm.weight": f"{inside}ln_prelude.weight",
        "injection.weight": f"{inside}adapter.B",
        "read_out.weight": f"{inside}C.weight",
    }.get(name)
    if stored is None and name.startswith("value_"):
        stored = f"{prefix}value_embeds.{name.split('.')[0].removeprefix('value_')}.weight"
    if stored is None:
        stack, number, part, kind = name.split(".")
        stored = f"{inside}{stack}.{number}.{PARTS[part]}.{kind}"
    reader.plain(name, stored, shape)
    plain = reader.tensors[name]
    return (lambda: plain() * 0.5) if name.endswith(".down_proj.weight") else plain
