"""Random weights and the configs that go with them, in the format of a family's authors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from .families.llama_names import ATTENTION, MLP
from .synth_shapes import WRITTEN_OUT, Shape

SHARD_BYTES = 256 << 20  # one shard is in memory at a time
ROOM = 16 << 20  # of norms, configs and tokenizer
NORM_NOISE = 0.05  # around 1, so that a norm that is forgotten or swapped shows


ARCHITECTURES = {
    "mor": "LlamaForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma": "GemmaForCausalLM",
    "mobilellm": "MobileLLMForCausalLM",
    "nanbeige": "NanbeigeForCausalLM",
    "ouro": "OuroForCausalLM",
}
"""Of the families whose tensors have Llama's names."""


class SynthWeights:
    """Makes the tensors one after another, and the configs that go with them.

    Without a generator their numbers are nobody's: for tensors that have none (``synth_program.py``).
    """

    def __init__(
        self, shape: Shape, generator: torch.Generator | None, dtype: torch.dtype, rank: int
    ) -> None:
        self.shape, self.generator, self.dtype, self.rank = shape, generator, dtype, rank
        d, q, kv = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        f = shape.intermediate_size
        self.linears = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        self.linears |= {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        # Each layer adds two outputs to the residual; this keeps their sum near 1 at any depth.
        self.damping = (2 * shape.applied_layers) ** -0.5
        self.parameters = 0

    def bytes_wanted(self) -> int:
        """Bytes of all tensors."""
        layers, d, v = len(set(self.shape.stored_layers)), self.shape.hidden_size, self.shape.vocab_size
        total = layers * sum(a * b for a, b in self.linears.values()) + v * d * (1 if self.shape.tied else 2)
        if self.rank:
            unrolled = len(self.shape.stored_layers)
            total += unrolled * sum(self.rank * (a + b) for a, b in self.linears.values())
        return total * self.dtype.itemsize + ROOM

    def write(self, folder: Path) -> None:
        """Write configs and weights to ``folder``."""
        (folder / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n", encoding="utf-8")
        if self.shape.family == "mor":
            (folder / "conf.yaml").write_text(
                yaml.safe_dump(self.training_config(), sort_keys=False), encoding="utf-8"
            )
        if self.shape.family in WRITTEN_OUT:  # safetensors would store a layer as often as it is written
            save_pickle(dict(self.tensors()), folder / "pytorch_model.bin")
        else:
            self.write_safetensors(folder)

    def write_safetensors(self, folder: Path) -> None:
        """Write model.safetensors, or shards of SHARD_BYTES with their index if it is larger."""
        shards: list[tuple[Path, list[str]]] = []
        batch: dict[str, torch.Tensor] = {}
        total = 0

        def flush() -> None:
            path = folder / f"shard{len(shards)}"
            path.write_bytes(save(_apart(batch), metadata={"format": "pt"}))
            shards.append((path, list(batch)))
            batch.clear()

        for name, tensor in self.tensors():
            if batch and sum(t.nbytes for t in batch.values()) + tensor.nbytes > SHARD_BYTES:
                flush()
            batch[name] = tensor
            total += tensor.nbytes
        flush()
        if len(shards) == 1:
            shards[0][0].rename(folder / "model.safetensors")
            return
        places = {}
        for i, (path, names) in enumerate(shards, 1):
            final = f"model-{i:05}-of-{len(shards):05}.safetensors"
            path.rename(folder / final)
            places.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) by the authors' names; tied tensors are one object, so torch.save aliases them."""
        shape = self.shape
        prefix = "base_model.model." if self.rank else ""
        d, v = shape.hidden_size, shape.vocab_size
        embed = self.normal((v, d), d**-0.5)
        yield f"{prefix}model.embed_tokens.weight", embed
        made: dict[str, torch.Tensor] = {}
        stored = shape.stored_layers
        for layer, source in enumerate(stored):
            for module, tensor in self.layer(source, stored.count(source) > 1, made):
                yield f"{prefix}model.layers.{layer}.{module}", tensor
        yield f"{prefix}model.norm.weight", self.norm(1.0)
        if shape.family == "ouro":
            yield "model.early_exit_gate.weight", self.normal((1, d), d**-0.5)
            yield "model.early_exit_gate.bias", torch.zeros(1, dtype=self.dtype)
        if shape.family != "mobilellm":
            yield f"{prefix}lm_head.weight", embed if shape.tied else self.normal((v, d), d**-0.5)

    def layer(
        self, source: int, shared: bool, made: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one layer; ``made`` keeps those that later layers share (none where no layer is
        shared)."""

        def once(key: str, make: torch.Tensor | None) -> torch.Tensor:
            if make is not None and shared:
                made[f"{source}.{key}"] = make
            return make if make is not None else made[f"{source}.{key}"]

        known = shared and f"{source}.q_proj" in made
        for name, (d_out, d_in) in self.linears.items():
            part = "self_attn" if name in ATTENTION else "mlp"
            std = d_in**-0.5 * (self.damping if name in ("o_proj", "down_proj") else 1.0)
            weight = once(name, None if known else self.normal((d_out, d_in), std))
            if self.rank and shared:
                yield f"{part}.{name}.base_layer.weight", weight
                # The delta is a tenth of the weight: large enough to matter, small enough to be a delta.
                yield f"{part}.{name}.lora_A.default.weight", self.normal((self.rank, d_in), d_in**-0.5)
                b = self.normal((d_out, self.rank), 0.1 * std * (d_in / self.rank) ** 0.5)
                yield f"{part}.{name}.lora_B.default.weight", b
            else:
                yield f"{part}.{name}.weight", weight
        sandwich = self.shape.family == "ouro"
        norms = {"input_layernorm": 1.0, "post_attention_layernorm": 1.0}
        if sandwich:
            norms |= {"input_layernorm_2": self.damping, "post_attention_layernorm_2": self.damping}
        for name, scale in norms.items():
            tie = known and self.shape.ln_share
            yield f"{name}.weight", once(name, None if tie else self.norm(scale))

    def normal(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """Return a tensor of normal numbers with standard deviation ``std``."""
        self.parameters += math.prod(shape)
        tensor = torch.empty(shape, dtype=self.dtype)
        for rows in tensor.split(4096):  # a float32 copy of a whole embedding would be the memory's peak
            rows.copy_(torch.randn(rows.shape, generator=self.generator).mul_(std))
        return tensor

    def norm(self, scale: float) -> torch.Tensor:
        """Return the weights of a norm, around ``scale``."""
        noise = torch.randn(self.shape.hidden_size, generator=self.generator) * NORM_NOISE
        self.parameters += noise.numel()
        stored = (1 + noise) * scale - (1 if self.shape.family == "gemma" else 0)  # its norms are of 1 + w
        return stored.to(self.dtype)

    def config(self) -> dict[str, Any]:
        """Return config.json."""
        shape = self.shape
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[shape.family]],
            "model_type": {"mor": "llama"}.get(shape.family, shape.family),
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": len(shape.stored_layers),
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": shape.context,
            "rms_norm_eps": shape.norm_eps,
            "rope_theta": shape.rope_theta,
            "rope_scaling": None,
            "attention_bias": False,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
        if shape.family == "mobilellm":
            config |= {"layer_sharing": True, "share_embedding": True}
        elif shape.family == "nanbeige":
            config |= {"num_loops": shape.repeats}
        elif shape.family == "gemma":
            config |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
        elif shape.family == "ouro":
            config |= {"total_ut_steps": shape.repeats, "early_exit_threshold": 1.0}
        return config

    def training_config(self) -> dict[str, Any]:
        """Return conf.yaml as far as it says what the model is."""
        shape = self.shape
        recursion = {"base_depth": None, "num_recursion": shape.repeats, "sharing": shape.sharing}
        lora: dict[str, Any] = {
            "r": self.rank or 4,
            "alpha": self.rank or 4,
            "dropout": 0.0,
            "alpha_pattern": 1.0,
        }
        lora |= {"target_modules": [*ATTENTION, *MLP], "rank_pattern": None, "svd_init": False}
        return {
            "model": "smollm",
            "recursive": {
                "enable": True,
                **recursion,
                "ln_share": shape.ln_share,
                "initialization": "random",
            },
            "kv_sharing": {"enable": False, **recursion, "update_cache": False},
            "relaxation": {
                "enable": bool(self.rank),
                "skip_first_loop": False,
                "method": "lora",
                "lora": lora,
            },
            "mor": {"enable": False},
        }


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with a copy of what is there twice: safetensors stores no tensor under two names."""
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor if first[id(tensor)] == name else tensor.clone() for name, tensor in tensors.items()}


def save_pickle(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Call ``torch.save``, and raise the OSError of a full disk instead of the RuntimeError that torch makes of it."""
    with path.open("wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:  # what file.write raised is the context of what torch makes of it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
