"""Ordinary models made recurrent (arXiv 2511.07384): Huginn's class and loop over the layers of a Llama or an OLMo 2.

Their config.json is Huginn's, with its class names; the tensors tell them apart. Beside the layers they differ in that
nothing is normed between the loop and the epilogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer, llama, output_norm
from ...runtime.model.ops import Concat, Embed, Scale
from ...runtime.model.program import Carry, Loop, Program, Stage
from ...runtime.model.weights import Matrix, Weight, canonical
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import OFF, check_keys
from .config_values import flag, number, size, token_ids
from .huginn import KINDS, READ, STACKS, TRAINED, HuginnNames
from .reader import FusedRows, Reader, Source
from .rope import rotation
from .ties import MAX_LAYERS

STARTS = ("random", "skip-adapter", "embed-init")
"""initial_state_mode: a state of zeros, or a first depth on the prologue's output, without or with the adapter."""
OWN = ("initial_state_mode", "max_position_embeddings", "rope_scaling", "rope_theta")
ROPE = {"rope_theta": ("rope_theta", "rope_base")}


class RetrofitFamily:
    """model_type "huginn_raven" over layers with two norms. A random first state is zero, as with init_scale=0."""

    name = "retrofit"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Huginn config over other layers than Huginn's, which have four norms."""
        if checkpoint.config.get("model_type") != "huginn_raven":
            return False
        ends = {name.partition("core_block.0.")[2] for name in checkpoint.names}
        return "norm_1.weight" in ends and ends.isdisjoint(("norm_3.weight", "norm_4.weight"))

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config = read_config(checkpoint)
        names = HuginnNames(checkpoint)
        reader = Reader(names)
        tied = reader.head_is_embedding(f"{names.prefix}lm_head.weight", config.tied)
        program = program_of(config, tied)
        stored = {
            "embed.weight": Source(names.embed),
            "adapter.weight": Source(f"{names.inside}adapter.weight"),
            "norm.weight": Source(f"{names.inside}ln_f.weight"),
            "head.weight": Source(f"{names.prefix}lm_head.weight"),
        }
        parts = _parts(config)
        for tensor in canonical(program.weights):
            if (source := stored.get(tensor.name)) is None:
                stack, layer, part = tensor.name.split(".", 2)
                own = parts[part]
                source = Source(f"{names.inside}{stack}.{layer}.{own.name}", own.rows)
            reader.plain(tensor.name, source, tensor.shape)
        reader.refuse_leftovers("the layers of a Llama or an OLMo 2 made recurrent, adapter and ln_f")
        return Reading(program, reader.tensors, frozenset(reader.used))


@dataclass(frozen=True)
class RetrofitConfig:
    """The sizes of a model; ``layers``: by their stack. ``normed``: OLMo's layers, which norm q, k and outputs."""

    vocab_size: int
    layer: Layer
    normed: bool
    layers: Mapping[str, int]
    depths: int
    start: str
    context_length: int
    embed_scale: float
    tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_config(checkpoint: Checkpoint) -> RetrofitConfig:
    """Return the sizes in config.json; CheckpointError names a key that is missing, malformed or not understood."""
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    check_keys(config, (*TRAINED, *OWN), where, set(READ) - {"qk_bias"}, KINDS | {"qk_bias": OFF})
    width, heads = size(config, "n_embd", where), size(config, "n_heads", where)
    kv_heads, head_dim = (
        size(config, "num_key_value_heads", where, heads),
        size(config, "head_dim", where, width // heads),
    )
    if heads % kv_heads:
        raise CheckpointError(f"{where}: n_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    layers = {stack: size(config, key, where) for stack, key in STACKS.items()}
    depths = size(config, "mean_recurrence", where)
    if max(depths, *layers.values()) > MAX_LAYERS:
        raise CheckpointError(
            f"{where}: {max(layers.values())} layers, {depths} depths (mean_recurrence); wanted {MAX_LAYERS} at most"
        )
    scales, start = config.get("init_values"), config.get("initial_state_mode") or "random"
    if not isinstance(scales, dict):
        raise CheckpointError(f"{where}: init_values is {shown(scales)}; wanted an object with embed_scale")
    if start not in STARTS:
        raise CheckpointError(
            f"{where}: initial_state_mode is {shown(start)}; wanted one of {', '.join(STARTS)}"
        )
    vocab = size(config, "padded_vocab_size", where, size(config, "vocab_size", where))
    normed = any(name.endswith(".attn.q_norm.weight") for name in checkpoint.names)
    bos = token_ids(config, "bos_token_id", vocab, where)
    attention = Attention(
        heads,
        kv_heads,
        head_dim,
        rotation(config, where, head_dim, ROPE),
        qk_norm="width" if normed else "none",
    )
    return RetrofitConfig(
        vocab_size=vocab,
        layer=Layer(
            width,
            attention,
            Mlp(size(config, "intermediate_size", where)),
            NormKind(number(config, "norm_eps", where)),
        ),
        normed=normed,
        layers=layers,
        depths=depths,
        start=start,
        context_length=size(config, "max_position_embeddings", where, size(config, "block_size", where)),
        embed_scale=number(scales, "embed_scale", f"{where}: init_values"),
        tied=flag(config, "tie_embeddings", where, True),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
    )


def program_of(config: RetrofitConfig, tied: bool) -> Program:
    """Return the model's program."""
    weights: dict[str, Weight] = {}
    c, width = config, config.layer.width
    write = output_norm if c.normed else llama

    def stack(w: Writer, x: str, name: str) -> str:
        for j in range(c.layers[name]):
            x = write(w, x, f"{name}.{j}", c.layer)
        return x

    def block(adapted: bool) -> Stage:
        w, x = Writer(weights, "state", "entered"), "state"
        if adapted:
            w.add(Concat(("state", "entered"), "both"))
            w.linear("both", ("adapted",), "adapter", Matrix({"adapter": width}, 2 * width))
            x = "adapted"
        return w.stage(stack(w, x, "core_block"), "entered")

    table = Matrix({"embed": c.vocab_size}, width)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table), c.embed_scale))
    entered = stack(w, "embedded", "prelude")
    if c.start == "random":
        w.add(Scale(entered, "zeros", 0.0))
    prologue = w.stage("zeros" if c.start == "random" else entered, entered)
    skips = c.start == "skip-adapter" and c.depths > 1
    blocks = (block(False), block(True)) if skips else (block(c.start != "skip-adapter"),)
    w = Writer(weights, "state", "entered")
    epilogue = w.stage(stack(w, "state", "coda"))
    w = Writer(weights, "state")
    head = table if tied else Matrix({"head": c.vocab_size}, width)
    w.linear(
        w.norm("state", "normed", "norm", width, c.layer.norm), ("logits",), "embed" if tied else "head", head
    )
    return Program(
        family=RetrofitFamily.name,
        vocab_size=c.vocab_size,
        context_length=c.context_length,
        prologue=prologue,
        loop=Loop(
            (Carry("state", width), Carry("entered", width)),
            blocks,
            (0,) + (len(blocks) - 1,) * (c.depths - 1),
            open_ended=True,
        ),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
        bos_token_id=c.bos_token_id,
        eos_token_ids=c.eos_token_ids,
    )


def _parts(config: RetrofitConfig) -> dict[str, Source]:
    """Return the checkpoint's tensors of a layer; Wqkv is the heads of q, then those of k, then those of v."""
    heads, kv = config.layer.attention.heads, config.layer.attention.kv_heads
    fused, place = heads + 2 * kv, "out_" if config.normed else ""
    found = {
        f"attention_{place}norm.weight": Source("norm_1.weight"),
        f"mlp_{place}norm.weight": Source("norm_2.weight"),
        "q_proj.weight": Source("attn.Wqkv.weight", FusedRows(0, fused, count=heads)),
        "k_proj.weight": Source("attn.Wqkv.weight", FusedRows(heads, fused, count=kv)),
        "v_proj.weight": Source("attn.Wqkv.weight", FusedRows(heads + kv, fused, count=kv)),
        "o_proj.weight": Source("attn.proj.weight"),
        "gate_proj.weight": Source("mlp.fc.weight", FusedRows(0, 2)),
        "up_proj.weight": Source("mlp.fc.weight", FusedRows(1, 2)),
        "down_proj.weight": Source("mlp.proj.weight"),
    }
    return found | {f"{side}_norm.weight": Source(f"attn.{side}_norm.weight") for side in "qk"}
