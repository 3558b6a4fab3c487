"""GPT-NeoX (Pythia) folders whose layers repeat: a recursive model saved as if unrolled.

Attention and MLP read the same state, each through a LayerNorm of its own, or one after the other where
use_parallel_residual is false; every matrix of a layer has a bias.
"""

from __future__ import annotations

import re

from msgspec import structs

from ...runtime.errors import CheckpointError
from ...runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama, parallel
from ...runtime.model.decoder import decoder
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_keys import check_keys
from .config_values import activation, flag, number, size, token_ids
from .near_ties import found_plan
from .reader import FusedRows, Reader, Source
from .rope import rotation
from .ties import LayerNames, TiedRun

CLASS = "GPTNeoXForCausalLM"
ROPE = {
    "rope_theta": ("rotary_emb_base", "rope_theta"),
    "partial_rotary_factor": ("rotary_pct", "partial_rotary_factor"),
}
"""The older keys of what transformers 5 keeps in rope_parameters."""

READ = frozenset(
    """
    architectures attention_bias bos_token_id eos_token_id hidden_act hidden_size intermediate_size layer_norm_eps
    max_position_embeddings model_type num_attention_heads num_hidden_layers partial_rotary_factor rope_parameters
    rope_scaling rope_theta rotary_emb_base rotary_pct tie_word_embeddings use_parallel_residual vocab_size
    """.split()  # noqa: SIM905
)
MATRICES = {
    "o_proj": "attention.dense",
    "up_proj": "mlp.dense_h_to_4h",
    "down_proj": "mlp.dense_4h_to_h",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEADS = ("embed_out", "lm_head")
"""The head's names: in files of save_pretrained, and in a state_dict of transformers 5."""

FUSED = "attention.query_key_value"
MASKS = re.compile(r"\d+\.attention\.(bias|masked_bias)")
"""Causal masks, which old checkpoints store in each layer."""


class NeoxNames(LayerNames):
    """The names of a checkpoint with GPT-NeoX's keys."""

    whose, embedding, stack = "GPT-NeoX", "gpt_neox.embed_in.weight", "gpt_neox.layers"

    def __init__(self, checkpoint: Checkpoint, attention_bias: bool) -> None:
        super().__init__(checkpoint)
        self.attention_bias = attention_bias
        heads = [f"{self.prefix}{name}.weight" for name in HEADS]
        self.head = next((name for name in heads if name in checkpoint.names), heads[0])

    def shared(self, layer: int) -> list[str]:
        """Return the tensors of a layer that every layer that repeats it has too."""
        matrices = (FUSED, *MATRICES.values())
        biased = [part for part in matrices if self.attention_bias or not part.startswith("attention.")]
        names = [f"{part}.weight" for part in matrices] + [f"{part}.bias" for part in biased]
        return [f"{self.inside}{layer}.{name}" for name in names]


class GptNeoxFamily:
    """model_type "gpt_neox"; what repeats is found in the weights."""

    name = "gpt_neox"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Is it a GPT-NeoX config?"""
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return kind == "gpt_neox" and architectures in (None, [CLASS])

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        check_keys(config, (), where, READ)
        bias = flag(config, "attention_bias", where, True)
        names = NeoxNames(checkpoint, bias)
        if lora := min((name for name in checkpoint.names if ".lora_" in name), default=None):
            raise CheckpointError(
                f"{checkpoint.folder}: {lora} is a LoRA, which is not read on GPT-NeoX's fused matrices; merge it into "
                "the model (PEFT's merge_and_unload)"
            )
        plan = found_plan(names, size(config, "num_hidden_layers", where))
        width, vocab = size(config, "hidden_size", where), size(config, "vocab_size", where)
        reader = Reader(names)
        segments = [(len(run.applied), _layer(reader, run, width, bias, where)) for run in plan]
        attention, norm, parts = segments[0][1].attention, segments[0][1].norm, f"{names.prefix}gpt_neox."
        tied = reader.head_is_embedding(names.head, flag(config, "tie_word_embeddings", where, False))
        program = decoder(
            self.name,
            parallel if flag(config, "use_parallel_residual", where, True) else llama,
            segments,
            norm,
            width=width,
            vocab_size=vocab,
            context_length=size(config, "max_position_embeddings", where, 2048),
            tied_embedding=tied,
        )
        reader.layers(program.weights, plan, _sources(attention.heads))
        reader.plain("embed.weight", names.embed, (vocab, width))
        reader.plain("norm.weight", f"{parts}final_layer_norm.weight", (width,))
        reader.plain("norm_bias.weight", f"{parts}final_layer_norm.bias", (width,))
        if not tied:
            reader.plain("head.weight", names.head, (vocab, width))
        masks = {n for n in checkpoint.names if MASKS.fullmatch(n.removeprefix(names.inside))}
        reader.refuse_leftovers("GPT-NeoX's layers (LayerNorms, and matrices with their biases)", masks)
        bos = token_ids(config, "bos_token_id", vocab, where)
        program = structs.replace(
            program,
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=token_ids(config, "eos_token_id", vocab, where),
        )
        return Reading(program, reader.tensors, frozenset(reader.used | masks))


def _layer(reader: Reader, run: TiedRun, width: int, bias: bool, where: str) -> Layer:
    """Return the description of the layers of ``run``: sizes of config.json, and whether norms differ between
    depths."""
    config = reader.checkpoint.config
    heads = size(config, "num_attention_heads", where)
    if width % heads:
        raise CheckpointError(f"{where}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    norms = [
        [f"{reader.names.inside}{layer}.{norm}.{kind}" for layer in applied]
        for applied in run.applied
        for norm in NORMS.values()
        for kind in ("weight", "bias")
    ]
    return Layer(
        width,
        Attention(
            heads,
            heads,
            width // heads,
            rotation(config, where, width // heads, ROPE, part=0.25),
            bias=bias,
            out_bias=bias,
        ),
        Mlp(
            size(config, "intermediate_size", where),
            activation(config, "hidden_act", where),
            gated=False,
            bias=True,
        ),
        NormKind(number(config, "layer_norm_eps", where, 1e-5), "layer", bias=True),
        depths=len(run.applied[0]),
        norm_rows=reader.differ((group, (width,)) for group in norms),
    )


def _sources(heads: int) -> dict[str, Source]:
    """Return the checkpoint's tensors of a layer. The rows of the fused matrix are q, k and v of head 0, of head 1 …"""
    found = {}
    for kind in ("weight", "bias"):
        for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
            found[f"{part}.{kind}"] = Source(f"{FUSED}.{kind}", FusedRows(place, 3, heads))
        found |= {f"{ours}.{kind}": Source(f"{theirs}.{kind}") for ours, theirs in MATRICES.items()}
    for ours, theirs in NORMS.items():
        found |= {
            f"{ours}.weight": Source(f"{theirs}.weight"),
            f"{ours}_bias.weight": Source(f"{theirs}.bias"),
        }
    return found
