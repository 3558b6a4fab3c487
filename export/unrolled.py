"""The same model with every applied layer written out: the yardstick that the benchmark holds bundles against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..quant.recipe import Recipe
from ..runtime.errors import ExportError
from ..runtime.llama_like import program_of, spec_of
from ..runtime.model.program import Program
from ..runtime.spec import Segment, Spec
from .family import Loader, Reading
from .fused import Numerics
from .graphs import write_graph
from .modules import Depth, Matrix, Norm, Table, Weights
from .stages import LANE_COUNT, LANE_INPUTS, Stage, flat, pairs
from .stored import write_weights
from .weights import places

WEIGHTS = "weights.safetensors"
SHARD_LAYERS = 8

_LLAMA = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"{p}_proj": f"self_attn.{p}_proj" for p in "qkvo"},
    **{f"{p}_proj": f"mlp.{p}_proj" for p in ("gate", "up", "down")},
}
_ATTENTION = tuple(part for part, name in _LLAMA.items() if name.startswith("self_attn."))


def unroll(reading: Reading) -> Reading:
    """``reading`` as one segment of distinct layers in order of application, deltas added to their matrices.

    ExportError for models that are not plain Llama layers when unrolled: norms between passes, shared K and V, windows,
    routers.
    """
    spec = spec_of(reading.program)
    differs = spec.kv == "shared" or spec.window is not None or spec.routing is not None
    if differs or spec.loop_norm or spec.sandwich_norms:
        raise ExportError("only models whose unrolled layers are plain Llama layers can be compared unrolled")
    tensors = {n: t for n, t in reading.tensors.items() if not n.startswith("segments.")}
    count = 0
    for s, segment in enumerate(spec.segments):
        for repeat in range(segment.repeats):
            for j in range(segment.layers):
                for part in _LLAMA:
                    name = f"segments.{s}.layers.{j}.{part}"
                    tensors[f"segments.0.layers.{count}.{part}.weight"] = _row(
                        reading, name, segment, part, repeat
                    )
                count += 1
    return Reading(
        program_of(msgspec.structs.replace(spec, segments=(Segment(count),))), tensors, reading.used
    )


def _row(reading: Reading, name: str, segment: Segment, part: str, repeat: int) -> Loader:
    load = reading.tensors[f"{name}.weight"]
    if segment.per_repeat_norms and part.endswith("norm"):
        return lambda: load()[repeat].clone()
    own = segment.per_repeat_attention and part in _ATTENTION
    weight: Loader = (lambda: load()[repeat].clone()) if own else load
    if part in segment.lora:
        a, b = reading.tensors[f"{name}.lora_a"], reading.tensors[f"{name}.lora_b"]
        return lambda: weight() + b()[repeat] @ a()[repeat]
    return weight


class Whole(Stage):
    """ids [B, S], rows [N] of the flattened B·S → logits [N, V]: a model of one segment as one graph."""

    name = "block"

    def build(self, weights: Weights, numerics: Numerics) -> None:
        self.embed = Table(weights, "embed", numerics, self.spec.hidden_size)
        self.norm = Norm(weights["norm.weight"], self.spec.norm_eps)
        self.head = Matrix(weights, "embed" if self.spec.tied_embedding else "head", numerics)

    @property
    def input_names(self) -> list[str]:
        return ["ids", "rows", *LANE_INPUTS, *(f"past.{n}" for n in self.cache_names)]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *(f"present.{n}" for n in self.cache_names)]

    def forward(self, ids: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows, *rest = inputs
        x = self.embed(ids)
        x, caches = self.run(x, None, self.lanes(tuple(rest[:LANE_COUNT])), pairs(tuple(rest[LANE_COUNT:])))
        x = self.norm(x.reshape(-1, self.spec.hidden_size).index_select(0, rows), Depth(0))
        return (self.head(x), *flat(caches))


def write_unrolled_graph(
    reading: Reading, recipe: Recipe, folder: Path, load: Callable[[Path], dict[str, Tensor]]
) -> tuple[Program, Path]:
    """One ONNX graph of the unrolled model in ``folder`` → its program and the graph's path."""
    unrolled = unroll(reading)
    write_weights(unrolled, recipe, folder / WEIGHTS)
    stage = Whole(
        spec_of(unrolled.program), load(folder / WEIGHTS), Numerics(recipe.bits, recipe.group_size, 4)
    )
    placed = places(folder / WEIGHTS)
    if unrolled.program.tied_embedding:  # a table and a matrix of other shapes over the same bytes
        placed |= {
            n.replace("embed.", "head."): place for n, place in placed.items() if n.startswith("embed.")
        }
    return unrolled.program, write_graph(stage, folder, WEIGHTS, placed)


def write_unrolled_checkpoint(reading: Reading, folder: Path) -> None:
    """The unrolled model as a float16 LlamaForCausalLM folder, sharded by layers; tokenizer files are the caller's."""
    unrolled = unroll(reading)
    spec, index = spec_of(unrolled.program), {}
    shards: dict[int, dict[str, Loader]] = {}
    for name, load in unrolled.tensors.items():
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
    (folder / "config.json").write_text(json.dumps(_llama_config(spec), indent=1), encoding="utf-8")


def _llama_name(name: str) -> tuple[str, int]:
    """The name in a Llama checkpoint of a canonical tensor, and its shard."""
    outer = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not name.startswith("segments."):
        return outer.get(name, "lm_head.weight"), 0
    _, _, _, layer, part, _ = name.split(".")
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
