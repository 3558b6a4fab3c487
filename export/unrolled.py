"""The same model with every applied layer written out: benchmarks compare bundles with it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors.torch import save_file

from ..quant.recipe import Recipe
from ..runtime.errors import ExportError
from ..runtime.model.program import Program
from ..runtime.model.transform import TensorSource, unrolled
from ..runtime.model.weights import Vector
from .families.llama_program import spec_of
from .families.llama_spec import Spec
from .family import Loader, Reading
from .lower.graph import Stored
from .lower.onnx import whole_graph
from .stored import write_weights

WEIGHTS, GRAPH = "weights.safetensors", "model.onnx"
SHARD_LAYERS = 8

_LLAMA = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"{p}_proj": f"self_attn.{p}_proj" for p in "qkvo"},
    **{f"{p}_proj": f"mlp.{p}_proj" for p in ("gate", "up", "down")},
}


def unroll(reading: Reading) -> Reading:
    """Return ``reading`` with its layers in order of application, as ``layers.N``, deltas added to their matrices.

    ExportError for models that compute something else then: those with a router, or whose depths share K/V.
    """
    program = reading.program
    if program.routing is not None:
        raise ExportError(
            "a router leaves out depths, and unrolled every token runs all of them; give a model without one"
        )
    if program.shares_kv:
        raise ExportError(
            "the depths share K/V, and unrolled layers have their own; give a model with K/V for each depth"
        )
    try:
        twin, sources = unrolled(program)
    except ValueError as error:
        raise ExportError(f"{error}; give a model that can be unrolled") from error
    return Reading(twin, {name: _loader(reading, source) for name, source in sources.items()}, reading.used)


def plain_llama(program: Program, who: str) -> Spec:
    """Return the spec of a model whose unrolled layers are Llama's, which is all that ``who`` takes; else
    ExportError."""
    spec = spec_of(program, who)
    others = {
        "norms of what layers add": spec.sandwich_norms,
        "a norm after each depth": spec.loop_norm,
        "a vector of each depth": any(segment.encoded for segment in spec.segments),
        "a sliding window": spec.window is not None,
        "scaled rotary embeddings": spec.rope_scaling is not None,
    }
    if found := next((name for name, has in others.items() if has), None):
        raise ExportError(f"{who} takes plain Llama layers only, and the model has {found}")
    return spec


def _loader(reading: Reading, source: TensorSource) -> Loader:
    """Return the loader of the tensor of ``source``, as it is at its depth."""
    load, at, weight = reading.tensors[source.tensor], source.at, reading.program.weights[source.weight]
    if at is None:
        return load
    own = weight.rows is not None if isinstance(weight, Vector) else weight.copies > 1
    alone: Loader = (lambda: load()[at].clone()) if own else load
    stem, _, side = source.tensor.rpartition(".")
    if side != "weight" or f"{stem}.lora_a" not in reading.tensors:
        return alone
    a, b = (reading.tensors[f"{stem}.lora_{part}"] for part in "ab")
    scale = reading.tensors.get(f"{stem}.lora_scale")

    def merged() -> torch.Tensor:
        value = alone() + b()[at] @ a()[at]
        return value if scale is None else value * scale()[at][:, None]

    return merged


def write_unrolled_graph(reading: Reading, recipe: Recipe, folder: Path) -> tuple[Program, Path]:
    """Write one ONNX graph of the unrolled model to ``folder``; return its program and the graph's path."""
    twin = unroll(reading)
    write_weights(twin, recipe, folder / WEIGHTS)
    ir.save(
        whole_graph(twin.program, Stored.open(folder / WEIGHTS, recipe.group_sizes(twin.program.weights))),
        folder / GRAPH,
    )
    return twin.program, folder / GRAPH


def write_unrolled_checkpoint(reading: Reading, folder: Path) -> None:
    """Write the unrolled model as a float16 LlamaForCausalLM folder, sharded by layers, without tokenizer files.

    ExportError for models that are none when unrolled.
    """
    config = _llama_config(plain_llama(reading.program, "its builder"))
    index = dict[str, str]()
    shards: dict[int, dict[str, Loader]] = {}
    for name, load in unroll(reading).tensors.items():
        key, shard = _llama_name(name)
        shards.setdefault(shard, {})[key] = load
    for number, loaders in sorted(shards.items()):
        file = f"model-{number:05d}.safetensors"
        tensors = {key: load().to(torch.float16).contiguous() for key, load in loaders.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _llama_name(name: str) -> tuple[str, int]:
    """Return the name in a Llama checkpoint of a canonical tensor, and its shard."""
    outer = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not name.startswith("layers."):
        return outer.get(name, "lm_head.weight"), 0
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_LLAMA[part]}.weight", 1 + int(layer) // SHARD_LAYERS


def _llama_config(spec: Spec) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.applied_layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": spec.tied_embedding,
        "bos_token_id": spec.bos_token_id or 0,
        "eos_token_id": list(spec.eos_token_ids) or 0,
        "hidden_act": "silu",
    }
