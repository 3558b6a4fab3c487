"""Huginn (recurrent depth, arXiv 2502.05171): a block of its own state and of the prologue's output, at any depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ...runtime.errors import CheckpointError
from ...runtime.model import blocks
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer
from ...runtime.model.ops import Concat, Embed, Scale
from ...runtime.model.program import Carry, Loop, Program
from ...runtime.model.rotation import Rotation
from ...runtime.model.weights import Matrix, Weight, canonical
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from .config_keys import OFF, ONLY, check_keys
from .config_values import flag, number, size, token_ids
from .reader import FusedRows, Reader, Source
from .ties import MAX_LAYERS, LayerNames

STACKS = {
    "prelude": "n_layers_in_prelude",
    "core_block": "n_layers_in_recurrent_block",
    "coda": "n_layers_in_coda",
}
"""The layers of the prologue, the block and the epilogue: their names, and the key that counts them."""

PARTS = {
    "attention_norm.weight": Source("norm_1.weight"),
    "attention_out_norm.weight": Source("norm_2.weight"),
    "mlp_norm.weight": Source("norm_3.weight"),
    "mlp_out_norm.weight": Source("norm_4.weight"),
    "q_proj.weight": Source("attn.Wqkv.weight", FusedRows(0, 3)),
    "k_proj.weight": Source("attn.Wqkv.weight", FusedRows(1, 3)),
    "v_proj.weight": Source("attn.Wqkv.weight", FusedRows(2, 3)),
    "o_proj.weight": Source("attn.proj.weight"),
    "gate_proj.weight": Source("mlp.fc.weight", FusedRows(0, 2)),
    "up_proj.weight": Source("mlp.fc.weight", FusedRows(1, 2)),
    "down_proj.weight": Source("mlp.proj.weight"),
}
"""The names of a layer's tensors."""
BIASES = {"q_proj.bias": 0, "k_proj.bias": 1, "v_proj.bias": None}
"""The rows of ``attn.qk_bias`` [2, 1, H, d]; v has none, and gets zeros."""

KINDS = ONLY | {
    "architecture_class_name": (None, "RecurrentGPT"),
    "block_class_name": (None, "SandwichBlock"),
    "norm_class_name": (None, "RMSNorm_llama"),
    "mlp_class_name": (None, "GatedMLP"),
    "nonlin_name": (None, "SiLU"),
    "injection_type": (None, "linear"),
    "state_init": (None, "like-init"),
    "test_time_noise": (None, 0),
    "bias": OFF,
}
"""Keys that change the computation, and the values that are computed here."""

TRAINED = (
    "activation_checkpoint_impl", "effective_expected_depth", "init_orthogonal", "init_strategy", "mean_backprop_depth",
    "padding_multiple", "sampling_scheme", "test_time_noise_type",
)  # fmt: skip
"""Keys that say how the weights were trained."""

READ = (
    "architectures", "auto_map", "block_size", "bos_token_id", "eos_token_id", "head_dim", "init_values",
    "intermediate_size", "mean_recurrence", "model_type", "n_embd", "n_heads", "n_layers", "norm_eps",
    "num_key_value_heads", "padded_vocab_size", "qk_bias", "rope_base", "tie_embeddings", "tie_word_embeddings",
    "vocab_size", *STACKS.values(),
)  # fmt: skip


class HuginnFamily:
    """model_type "huginn_raven". The state before the first depth is zero, as with the authors' init_scale=0."""

    name = "huginn"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Huginn config."""
        return bool(checkpoint.config.get("model_type") == "huginn_raven")

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        names = HuginnNames(checkpoint)
        config = read_config(checkpoint)
        reader = Reader(names)
        tied = reader.head_is_embedding(f"{names.prefix}lm_head.weight", config.tied)
        program = program_of(config, tied)
        by = Rotation(config.width // config.heads, config.rope_theta)
        check_rotary_tables(reader, by, config.context_length)
        stored = {
            "embed.weight": Source(names.embed),
            "adapter.weight": Source(f"{names.inside}adapter.weight"),
            "norm.weight": Source(f"{names.inside}ln_f.weight"),
            "head.weight": Source(f"{names.prefix}lm_head.weight"),
        }
        for tensor in canonical(program.weights):
            stack, _, place = tensor.name.partition(".")
            number, _, part = place.partition(".")
            layer = f"{names.inside}{stack}.{number}."
            if part in BIASES:
                load = _bias(reader, f"{layer}attn.qk_bias", BIASES[part], config)
                reader.tensors[tensor.name] = load
            else:
                own = PARTS.get(part)
                source = Source(f"{layer}{own.name}", own.rows) if own else stored[tensor.name]
                reader.plain(tensor.name, source, tensor.shape)
        reader.refuse_leftovers("a Huginn's layers, adapter and ln_f")
        return Reading(program, reader.tensors, frozenset(reader.used))


class HuginnNames(LayerNames):
    """The names of a checkpoint: three stacks of layers, and what is beside them."""

    whose, embedding, stack = "Huginn", "transformer.wte.weight", "transformer.core_block"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inside = f"{self.prefix}transformer."


@dataclass(frozen=True)
class HuginnConfig:
    """The sizes of a model; ``layers``: by their stack."""

    vocab_size: int
    width: int
    heads: int
    mlp: int
    layers: Mapping[str, int]
    depths: int
    context_length: int
    norm_eps: float
    rope_theta: float
    embed_scale: float
    qk_bias: bool
    tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_config(checkpoint: Checkpoint) -> HuginnConfig:
    """Return the sizes in config.json; CheckpointError names a key that is missing, malformed or not understood."""
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    check_keys(config, TRAINED, where, READ, KINDS)
    width, heads = size(config, "n_embd", where), size(config, "n_heads", where)
    if width % heads or width // heads % 2:
        raise CheckpointError(f"{where}: n_embd {width} with n_heads {heads} gives no heads of an even size")
    for key, wanted in (("num_key_value_heads", heads), ("head_dim", width // heads)):
        if (found := size(config, key, where, wanted)) != wanted:
            raise CheckpointError(
                f"{where}: {key} is {found}, which is not supported; wanted {wanted}, as n_heads says"
            )
    layers = {stack: size(config, key, where) for stack, key in STACKS.items()}
    depths = size(config, "mean_recurrence", where)
    if max(depths, *layers.values()) > MAX_LAYERS:
        raise CheckpointError(
            f"{where}: {max(layers.values())} layers, {depths} depths (mean_recurrence); wanted {MAX_LAYERS} at most"
        )
    vocab = size(config, "padded_vocab_size", where, size(config, "vocab_size", where))
    scales = config.get("init_values") or {}
    if not isinstance(scales, dict):
        raise CheckpointError(f"{where}: init_values is {shown(scales)}; wanted an object with embed_scale")
    bos = token_ids(config, "bos_token_id", vocab, where)
    return HuginnConfig(
        vocab_size=vocab,
        width=width,
        heads=heads,
        mlp=size(config, "intermediate_size", where),
        layers=layers,
        depths=depths,
        context_length=size(config, "block_size", where),
        norm_eps=number(config, "norm_eps", where),
        rope_theta=number(config, "rope_base", where),
        embed_scale=number(scales, "embed_scale", f"{where}: init_values", width**0.5),
        qk_bias=flag(config, "qk_bias", where, True),
        tied=flag(config, "tie_embeddings", where, True),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
    )


def program_of(config: HuginnConfig, tied: bool) -> Program:
    """Return the model's program."""
    weights: dict[str, Weight] = {}
    c, width, head_dim = config, config.width, config.width // config.heads
    rotation, normal = Rotation(head_dim, c.rope_theta), NormKind(c.norm_eps)
    attention = Attention(c.heads, c.heads, head_dim, rotation, pairs=True, bias=c.qk_bias)
    layer = Layer(width, attention, Mlp(c.mlp), normal)

    def stack(w: Writer, x: str, name: str) -> str:
        for j in range(c.layers[name]):
            x = sandwich(w, x, f"{name}.{j}", layer)
        return x

    table = Matrix({"embed": c.vocab_size}, width)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table), c.embed_scale))
    entered = stack(w, "embedded", "prelude")
    w.add(Scale(entered, "zeros", 0.0))
    prologue = w.stage("zeros", entered)
    w = Writer(weights, "state", "entered")
    w.add(Concat(("state", "entered"), "both"))
    w.linear("both", ("adapted",), "adapter", Matrix({"adapter": width}, 2 * width))
    block = w.stage(stack(w, "adapted", "core_block"), "entered")
    w = Writer(weights, "state", "entered")
    epilogue = w.stage(stack(w, w.norm("state", "normed", "norm", width, normal), "coda"))
    w = Writer(weights, "state")
    head = table if tied else Matrix({"head": c.vocab_size}, width)
    w.linear(w.norm("state", "normed", "norm", width, normal), ("logits",), "embed" if tied else "head", head)
    return Program(
        family=HuginnFamily.name,
        vocab_size=c.vocab_size,
        context_length=c.context_length,
        prologue=prologue,
        loop=Loop(
            (Carry("state", width), Carry("entered", width)), (block,), (0,) * c.depths, open_ended=True
        ),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
        bos_token_id=c.bos_token_id,
        eos_token_ids=c.eos_token_ids,
    )


def sandwich(w: Writer, x: str, prefix: str, layer: Layer) -> str:
    """Write norm(x + attention(norm x)), then norm(x + mlp(norm x))."""
    w.enter_layer(x)
    a = blocks.attention(w, blocks.norm(w, x, "h", prefix, "attention_norm", layer, None), prefix, layer)
    x = blocks.norm(w, blocks.add(w, x, a, "xa"), "x", prefix, "attention_out_norm", layer, None)
    m = blocks.mlp(w, blocks.norm(w, x, "g", prefix, "mlp_norm", layer, None), prefix, layer)
    return blocks.norm(w, blocks.add(w, x, m, "xm"), "out", prefix, "mlp_out_norm", layer, None)


def check_rotary_tables(reader: Reader, by: Rotation, context_length: int) -> None:
    """Raise CheckpointError unless the tables of cos and sin that are stored with the weights are those of
    rope_base."""
    name, half = f"{reader.names.prefix}freqs_cis", by.dims // 2
    if name not in reader.checkpoint.names:
        return
    reader.used.add(name)
    stored = reader.checkpoint.tensor(name, (1, context_length, 1, half, 2))
    angles = torch.outer(torch.arange(context_length), by.theta ** (-torch.arange(half) / half))
    if (stored[0, :, 0] - torch.stack((angles.cos(), angles.sin()), -1)).abs().max() > 0.01:
        raise CheckpointError(
            f"{reader.checkpoint.folder}: {name} holds other rotations than those of rope_base {by.theta:g}, "
            "by which positions are rotated; the config is not this checkpoint's"
        )


def _bias(reader: Reader, name: str, row: int | None, config: HuginnConfig) -> Loader:
    shape = (2, 1, config.heads, config.width // config.heads)
    reader.checkpoint.require(name, shape)
    reader.used.add(name)
    if row is None:
        return partial(torch.zeros, config.width)
    return lambda: reader.checkpoint.tensor(name, shape)[row].flatten()
