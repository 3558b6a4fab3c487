"""ALBERT: an encoder of a few layers in groups, each group applied several times, on narrow embeddings.

Layer i of num_hidden_layers runs group ⌊i / (layers / groups)⌋, which is inner_group_num layers one after the other
(arXiv 1909.11942, section 3.1). A depth of the loop is one of these layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer, post_norm
from ...runtime.model.ops import Act, Add, Embed
from ...runtime.model.program import Carry, Loop, Program
from ...runtime.model.weights import Matrix, Weight, canonical
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import OFF, check_keys
from .config_values import activation, flag, number, size, token_ids
from .reader import Reader
from .ties import MAX_LAYERS, LayerNames

READ = frozenset(
    """
    architectures bos_token_id classifier_dropout_prob embedding_size eos_token_id hidden_act hidden_size
    inner_group_num intermediate_size layer_norm_eps max_position_embeddings model_type num_attention_heads
    num_hidden_groups num_hidden_layers tie_word_embeddings type_vocab_size vocab_size
    """.split()  # noqa: SIM905
)
ONLY = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": OFF,
    "add_cross_attention": OFF,
    "is_encoder_decoder": OFF,
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "down_scale_factor": (1,),
    "gap_size": (0,),
    "layers_to_keep": ([],),
    "net_structure_type": (0,),
    "num_memory_blocks": (0,),
}
"""Keys that would change the computation, and the values that are computed here; the last five are of the authors'
code."""

EMBEDDINGS = {
    "embed.weight": "embeddings.word_embeddings.weight",
    "type_embed.weight": "embeddings.token_type_embeddings.weight",
    "position_embed.weight": "embeddings.position_embeddings.weight",
    "embed_norm.weight": "embeddings.LayerNorm.weight",
    "embed_norm_bias.weight": "embeddings.LayerNorm.bias",
    "embed_out.weight": "encoder.embedding_hidden_mapping_in.weight",
    "embed_out.bias": "encoder.embedding_hidden_mapping_in.bias",
}
HEAD = {
    "predict.weight": "predictions.dense.weight",
    "predict.bias": "predictions.dense.bias",
    "norm.weight": "predictions.LayerNorm.weight",
    "norm_bias.weight": "predictions.LayerNorm.bias",
    "head.weight": "predictions.decoder.weight",
}
BIASES = ("predictions.bias", "predictions.decoder.bias")
"""The vocabulary's bias: one tensor, which some files have under both names; untied, the last one is the head's."""
LAYER = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "attention.dense",
    "up_proj": "ffn",
    "down_proj": "ffn_output",
    "attention_norm": "attention.LayerNorm",
    "mlp_norm": "full_layer_layer_norm",
}


class AlbertNames(LayerNames):
    """The names of a checkpoint: an AlbertModel's, or under ``albert.`` those of a model with heads beside it."""

    whose, embedding, stack = "ALBERT", "embeddings.word_embeddings.weight", "encoder.albert_layer_groups"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.root = self.prefix.removesuffix("albert.")
        said = checkpoint.config.get("architectures") or []
        stored = any(name.startswith(f"{self.root}predictions.") for name in checkpoint.names)
        self.has_head = stored or "AlbertForMaskedLM" in said

    def stored(self, name: str) -> str:
        """Return the checkpoint's name of the canonical tensor ``name``."""
        if name in EMBEDDINGS:
            return f"{self.prefix}{EMBEDDINGS[name]}"
        if name in HEAD:
            return f"{self.root}{HEAD[name]}"
        _, group, layer, part, kind = name.split(".")
        if part.endswith("_bias"):
            part, kind = part.removesuffix("_bias"), "bias"
        return f"{self.inside}{group}.albert_layers.{layer}.{LAYER[part]}.{kind}"


class AlbertFamily:
    """model_type "albert"."""

    name = "albert"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is an ALBERT's config."""
        return checkpoint.config.get("model_type") == "albert"

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, (), where, READ, ONLY)
        names = AlbertNames(checkpoint)
        reader = Reader(names)
        if (groups := size(config, "num_hidden_groups", where, 1)) != names.layers:
            raise CheckpointError(
                f"{where}: num_hidden_groups is {groups}, and the weights have {names.layers} groups of layers"
            )
        declared = flag(config, "tie_word_embeddings", where, True)
        tied = not names.has_head or reader.head_is_embedding(f"{names.root}{HEAD['head.weight']}", declared)
        program = _program(checkpoint, names.has_head, tied)
        biases = [f"{names.root}{name}" for name in BIASES]
        biases = [name for name in biases if name in checkpoint.names] or biases[:1]
        biases = biases if declared else biases[-1:]
        for tensor in canonical(program.weights):
            if tensor.name in ("embed.bias", "head.bias"):
                reader.tied(biases, tensor.shape)
                reader.plain(tensor.name, biases[0], tensor.shape)
            else:
                reader.plain(tensor.name, names.stored(tensor.name), tensor.shape)
        reader.refuse_leftovers("ALBERT's layers (LayerNorms, and matrices with their biases)")
        return Reading(program, reader.tensors, frozenset(reader.used))


def _order(config: Mapping[str, Any], where: str) -> Iterator[tuple[int, int]]:
    """Yield (group, layer of the group) of each depth."""
    groups, inner = (size(config, key, where, 1) for key in ("num_hidden_groups", "inner_group_num"))
    layers = size(config, "num_hidden_layers", where, 12)
    if layers * inner > MAX_LAYERS:
        raise CheckpointError(f"{where}: {layers} layers of {inner}; wanted {MAX_LAYERS} at most together")
    # In floats, as transformers has it: of 18 layers in 14 groups, layer 9 runs group 6, where 9 · 14 / 18 is 7.
    return ((int(i / (layers / groups)), k) for i in range(layers) for k in range(inner))


def _program(checkpoint: Checkpoint, head: bool, tied: bool) -> Program:
    """Return the model's program. Without a ``head`` its output is states."""
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    vocab, context = size(config, "vocab_size", where), size(config, "max_position_embeddings", where, 512)
    width, narrow = size(config, "hidden_size", where), size(config, "embedding_size", where, 128)
    heads = size(config, "num_attention_heads", where)
    if width % heads:
        raise CheckpointError(
            f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    function = activation(config, "hidden_act", where, "gelu_new")
    layer = Layer(
        width,
        Attention(heads, heads, width // heads, None, mask="both", cached=False, bias=True, out_bias=True),
        Mlp(size(config, "intermediate_size", where), function, gated=False, bias=True),
        NormKind(number(config, "layer_norm_eps", where, 1e-12), "layer", bias=True),
    )
    weights: dict[str, Weight] = {}
    table = Matrix({"embed": vocab}, narrow, bias=head and tied)
    w = Writer(weights, "ids", "types", "positions")
    w.add(Embed("ids", "word", w.weight("embed", table)))
    types = Matrix({"type_embed": size(config, "type_vocab_size", where, 2)}, narrow)
    w.add(Embed("types", "type", w.weight("type_embed", types)))
    w.add(
        Embed("positions", "place", w.weight("position_embed", Matrix({"position_embed": context}, narrow)))
    )
    w.add(Add("word", "type", "typed"))
    w.add(Add("typed", "place", "placed"))
    x = w.norm("placed", "embedded", "embed_norm", narrow, layer.norm)
    w.linear(x, ("state",), "embed_out", Matrix({"embed_out": width}, narrow, bias=True))
    prologue, order = w.stage("state"), list(_order(config, where))
    blocks = {}
    for group, inner in dict.fromkeys(order):
        w = Writer(weights, "state")
        blocks[group, inner] = w.stage(post_norm(w, "state", f"groups.{group}.{inner}", layer))
    numbers = {place: number for number, place in enumerate(blocks)}
    still = Writer(weights, "state").stage("state")
    w = Writer(weights, "state")
    if head:
        w.linear("state", ("h",), "predict", Matrix({"predict": narrow}, width, bias=True))
        w.add(Act("h", "active", function))
        x = w.norm("active", "normed", "norm", narrow, layer.norm)
        out = table if tied else Matrix({"head": vocab}, narrow, bias=True)
        w.linear(x, ("logits",), "embed" if tied else "head", out)
    bos = token_ids(config, "bos_token_id", vocab, where)
    return Program(
        family=AlbertFamily.name,
        vocab_size=vocab,
        context_length=context,
        prologue=prologue,
        loop=Loop((Carry("state", width),), tuple(blocks.values()), tuple(numbers[place] for place in order)),
        epilogue=still,
        head=w.stage("logits") if head else still,
        weights=weights,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
    )
