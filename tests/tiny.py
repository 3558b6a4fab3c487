"""Tiny checkpoints of every family, with random weights: width 64, a few layers, context 64.

``make(kind, folder)`` writes one; ``KINDS`` names them. Tests get it as the ``tiny`` fixture (conftest.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from msgspec import structs
from safetensors.torch import load_file, save_file

from edgeloop.apps.demo.model import DemoConfig, DemoModel
from edgeloop.apps.demo.routed import RoutedConfig, RoutedModel
from edgeloop.export.families.llama_program import program_of, spec_of
from edgeloop.export.synth import Shape, synthesize_shape
from edgeloop.export.synth_tokenizer import write_tokenizer
from edgeloop.runtime.model.program import Program

WINDOW = 6
VOCAB = 320  # the byte tokenizer's 257 tokens and some fillers
MOR = Shape("mor", VOCAB, 64, 96, 4, 2, layers=8, repeats=3, context=64)


def _mor(folder: Path, sharing: str = "middle_cycle", rank: int = 0, ln_share: bool = True) -> None:
    layers = 8 if sharing.startswith("middle_") else 6
    shape = replace(MOR, sharing=sharing, ln_share=ln_share, layers=layers)
    synthesize_shape(shape, folder, dtype="float32", lora_rank=rank)


def _mor_routed(folder: Path, kind: str, router: str = "linear", auxiliary: bool = False) -> None:
    """As ``mor-middle-cycle``, with its layers where the authors' routed models have them, and routers."""
    _mor(folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for name in [n for n in state if n.startswith("model.layers.")]:
        _, _, layer, *rest = name.split(".")
        if 0 < int(layer) < 7:
            r, j = divmod(int(layer) - 1, 2)
            block = f"{1 + r}.block.{j}" if kind == "expert" else f"1.block_list.{r}.{j}"
        else:
            block = {"0": "0", "7": "4" if kind == "expert" else "2"}[layer]
        state[".".join(("moved.layers", block, *rest))] = state.pop(name)
    state = {n.replace("moved.", "model."): tensor for n, tensor in state.items()}
    torch.manual_seed(1)
    for stem in ("mor_router", "mlp_router") if auxiliary else ("mor_router",):
        for r in range(3 if kind == "expert" else 1):
            state |= _router(f"model.layers.{1 + r}.{stem}.router", router, 1 if kind == "expert" else 3)
    if kind == "token":
        state["model.layers.1.router_bias"] = torch.tensor([-0.1, 0.05, 0.1])
    torch.save(state, folder / "pytorch_model.bin")
    conf = yaml.safe_load((folder / "conf.yaml").read_text())
    conf["mor"] = {
        "enable": True, "type": kind, "capacity": None, "rand_router": False, "router_type": router, "temp": 0.8,
        "expert": {
            "router_func": "sigmoid", "alpha": 0.5, "gating": "weighted",
            "sampling": "aux_router" if auxiliary else "aux_loss",
        },
        "token": {"router_func": "softmax", "alpha": 1.0, "gating": "weighted", "balancing": "loss_free"},
    }  # fmt: skip
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))


def _mor_own_attention(folder: Path) -> None:
    """As ``mor-expert``, from before the authors tied attention over recursions: each block has its own."""
    _mor_routed(folder, "expert")
    state = dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    torch.manual_seed(3)
    for name in [n for n in state if ".block." in n and ".self_attn." in n]:
        state[name] = state[name] + torch.randn_like(state[name]) * 0.05
    torch.save(state, folder / "pytorch_model.bin")


def _mor_routed_shared(folder: Path, kind: str) -> None:
    """Routed, with K and V of depth 0 for all depths; expert choice lets some tokens run none at all."""
    _mor_routed(folder, kind)
    conf = yaml.safe_load((folder / "conf.yaml").read_text())
    conf["kv_sharing"]["enable"] = True
    conf["mor"]["capacity"] = "0.75,0.5,0.25"
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))


def _router(name: str, kind: str, out: int) -> dict[str, torch.Tensor]:
    if kind == "linear":
        return {f"{name}.weight": torch.randn(out, 64) * 0.2}
    return {f"{name}.0.weight": torch.randn(128, 64), f"{name}.2.weight": torch.randn(out, 128) * 0.1}


def _mor_shared(folder: Path) -> None:
    _mor(folder)
    conf = yaml.safe_load((folder / "conf.yaml").read_text())
    conf["kv_sharing"]["enable"] = True
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))


def _mobilellm(folder: Path) -> None:
    synthesize_shape(replace(MOR, family="mobilellm", layers=3, repeats=2), folder, dtype="float32")


def _ouro(folder: Path) -> None:
    shape = replace(MOR, family="ouro", layers=2, repeats=3, kv_heads=4, tied=False)
    synthesize_shape(shape, folder, dtype="float32")


def _llama(folder: Path) -> None:
    """A plain Llama folder, 1 + 2 × 2 + 1 layers written out, v5's way of giving rope, equal copies."""
    _mor(folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    (folder / "conf.yaml").unlink()
    keep = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 7}
    tensors = {k: v.clone() for k, v in state.items() if not k.startswith(("model.layers.", "lm_head"))}
    for new, old in keep.items():
        stem = f"model.layers.{old}."
        tensors |= {
            f"model.layers.{new}.{k[len(stem) :]}": v.clone() for k, v in state.items() if k.startswith(stem)
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    config["dtype"] = config.pop("torch_dtype")
    config["num_hidden_layers"] = len(keep)
    (folder / "config.json").write_text(json.dumps(config))


def _llama_window(folder: Path) -> None:
    """Mistral: Llama with a sliding window."""
    _llama(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": WINDOW}
    (folder / "config.json").write_text(json.dumps(config))


def _llama_sharded(folder: Path) -> None:
    _llama(folder)
    shard(folder)


def _edgeloop(
    folder: Path, rank: int = 4, cls: type[DemoConfig] = DemoConfig, width: int | None = None, **keys: object
) -> None:
    config = cls(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, block_layers=2, num_recursions=3, lora_rank=rank, lora_scale=1.5, max_position_embeddings=64,
        block_intermediate_size=width,
    )  # fmt: skip
    folder.mkdir(parents=True)
    state = demo_model(config).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.as_json() | keys))
    write_tokenizer(folder, VOCAB)


def looped_layer(folder: Path, **keys: Any) -> Path:
    """One layer that is run twice, with norms and deltas of each depth: the least that a loop can be."""
    config = DemoConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, prologue_layers=0, block_layers=1, num_recursions=2, epilogue_layers=0, lora_rank=4, **keys,
    )  # fmt: skip
    folder.mkdir()
    save_file(demo_model(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.as_json()))
    write_tokenizer(folder, VOCAB)
    return folder


def demo_model(config: DemoConfig) -> DemoModel:
    """The model with seeded weights in which every delta and every router matters."""
    torch.manual_seed(0)
    model = (RoutedModel(config) if isinstance(config, RoutedConfig) else DemoModel(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.05)
            elif name == "router.weight":
                parameter.normal_(std=2.0)
            elif parameter.dim() <= 2 and "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


KINDS: dict[str, Callable[[Path], None]] = {
    "edgeloop": _edgeloop,
    "edgeloop-no-lora": lambda folder: _edgeloop(folder, rank=0),
    "edgeloop-wide": lambda folder: _edgeloop(folder, width=160),
    "edgeloop-routed": lambda folder: _edgeloop(folder, cls=RoutedConfig),
    "edgeloop-shared": lambda folder: _edgeloop(folder, kv="shared"),
    "edgeloop-window": lambda folder: _edgeloop(folder, sliding_window=WINDOW),
    "mor-cycle": lambda folder: _mor(folder, "cycle"),
    "mor-sequence": lambda folder: _mor(folder, "sequence"),
    "mor-middle-cycle": _mor,
    "mor-middle-sequence": lambda folder: _mor(folder, "middle_sequence"),
    "mor-lora": lambda folder: _mor(folder, rank=4),
    "mor-norms": lambda folder: _mor(folder, ln_share=False),
    "mor-expert": lambda folder: _mor_routed(folder, "expert"),
    "mor-own-attention": _mor_own_attention,
    "mor-token": lambda folder: _mor_routed(folder, "token"),
    "mor-shared": _mor_shared,
    "mobilellm": _mobilellm,
    "ouro": _ouro,
    "llama": _llama,
    "llama-sharded": _llama_sharded,
    "llama-window": _llama_window,
}

ROUTERS: dict[str, Callable[[Path], None]] = {
    "mor-expert-mlp": lambda folder: _mor_routed(folder, "expert", "mlp", auxiliary=True),
    "mor-expert-auxiliary": lambda folder: _mor_routed(folder, "expert", auxiliary=True),
    "mor-token-mlp": lambda folder: _mor_routed(folder, "token", "wide_mlp"),
    "mor-expert-shared": lambda folder: _mor_routed_shared(folder, "expert"),
    "mor-token-shared": lambda folder: _mor_routed_shared(folder, "token"),
}
"""More routed models, for the tests of routing alone."""


def altered(program: Program, **changes: Any) -> Program:
    """``program`` with other numbers of its spec."""
    return program_of(structs.replace(spec_of(program), **changes))


def make(kind: str, folder: Path) -> Path:
    """Write the checkpoint ``kind`` to ``folder``, which must not exist; returns ``folder``."""
    (KINDS | ROUTERS)[kind](folder)
    return folder


def shard(folder: Path, count: int = 3) -> None:
    """Replace model.safetensors by shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {
        name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(tensors)
    }
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
