"""Checkpoints of our own demo model (``apps/demo/model.py``): prologue, block × R with deltas, epilogue."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch

from ...runtime.errors import CheckpointError
from ...runtime.model.program import Routing
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from .config_values import MAX_SIZE, flag, number, size
from .llama_names import ATTENTION, NORMS
from .llama_program import program_of
from .llama_spec import Segment, Spec
from .mor_routing import check_capacity
from .ties import MAX_LAYERS

KEYS = frozenset(
    [
        "model_type",
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "block_intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "prologue_layers",
        "block_layers",
        "num_recursions",
        "epilogue_layers",
        "lora_rank",
        "lora_scale",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "router_alpha",
        "router_capacity",
        "kv",
        "sliding_window",
    ]
)


class EdgeloopFamily:
    """model_type "edgeloop"; the config is closed: a key that is not in KEYS is an error."""

    name = "edgeloop"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a config of edgeloop's own format."""
        return bool(checkpoint.config.get("model_type") == "edgeloop")

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        config, where = checkpoint.config, str(checkpoint.folder / "config.json")
        if strange := min(set(config) - KEYS, default=None):
            raise CheckpointError(f"{where}: unknown key {strange}; wanted only {', '.join(sorted(KEYS))}")
        if not flag(config, "tie_word_embeddings", where, True):
            raise CheckpointError(
                f"{where}: tie_word_embeddings is false; the demo model has no head of its own"
            )
        window = size(config, "sliding_window", where) if config.get("sliding_window") is not None else None
        heads = size(config, "num_attention_heads", where)
        kv_heads = size(config, "num_key_value_heads", where)
        head_dim = size(config, "head_dim", where)
        if heads % kv_heads or head_dim % 2:
            raise CheckpointError(
                f"{where}: {heads} heads, {kv_heads} KV heads, head_dim {head_dim} do not fit"
            )
        vocab, width = size(config, "vocab_size", where), size(config, "hidden_size", where)
        repeats = _count(config, "num_recursions", where, minimum=1)
        rank = _count(config, "lora_rank", where)
        stages = (
            ("prologue", _count(config, "prologue_layers", where), 1, 0),
            ("block", _count(config, "block_layers", where, minimum=1), repeats, rank),
            ("epilogue", _count(config, "epilogue_layers", where), 1, 0),
        )
        reader = _Reader(checkpoint, number(config, "lora_scale", where, 1.0))
        q, kv, f = heads * head_dim, kv_heads * head_dim, size(config, "intermediate_size", where)
        own = config.get("block_intermediate_size") is not None
        widths = {"block": size(config, "block_intermediate_size", where)} if own else {}
        attention = {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, q)}
        segments = tuple(
            reader.segment(i, *stage, width, attention, widths.get(stage[0], f), f)
            for i, stage in enumerate(s for s in stages if s[1])
        )
        reader.add("embed.weight", "embed_tokens.weight", (vocab, width))
        reader.add("norm.weight", "norm.weight", (width,))
        routing = _routing(config, repeats, where)
        if routing is not None:
            checkpoint.require("router.weight", (repeats, width))
            reader.used.add("router.weight")
        parts = ("prologue.", "block.", "epilogue.", "router.")
        stray = (n for n in checkpoint.names - reader.used if n.startswith(parts))
        if name := min(stray, default=None):
            raise CheckpointError(
                f"{checkpoint.folder}: {name} is part of a layer or router that config.json does not have"
            )
        spec = Spec(
            family=self.name,
            segments=segments,
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=f,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=number(config, "rms_norm_eps", where),
            rope_theta=number(config, "rope_theta", where),
            context_length=size(config, "max_position_embeddings", where),
            tied_embedding=True,
            kv=_kv(config, repeats, routing, where),
            sliding_window=window,
            routing=routing,
            bos_token_id=_count(config, "bos_token_id", where, maximum=vocab - 1),
            eos_token_ids=(_count(config, "eos_token_id", where, maximum=vocab - 1),),
        )
        routers: dict[str, Loader] = {}
        if routing is not None:
            routers["router.weight"] = partial(checkpoint.tensor, "router.weight")
        return Reading(program_of(spec), reader.tensors, frozenset(reader.used), routers)


class _Reader:
    """Collects the loaders of the canonical tensors, and the names that were used."""

    def __init__(self, checkpoint: Checkpoint, scale: float) -> None:
        self.checkpoint, self.scale = checkpoint, scale
        self.tensors: dict[str, Loader] = {}
        self.used: set[str] = set()

    def add(
        self, canonical: str, name: str, shape: tuple[int, ...], first: bool = False, scale: float = 1.0
    ) -> None:
        """Add a canonical tensor. ``first``: it is stored as a stack of one row, and read as the row."""
        self.checkpoint.require(name, shape)
        self.used.add(name)
        self.tensors[canonical] = partial(_load, self.checkpoint, name, shape, first, scale)

    def segment(
        self,
        number: int,
        stage: str,
        layers: int,
        repeats: int,
        rank: int,
        width: int,
        attention: Mapping[str, tuple[int, int]],
        mlp: int,
        usual: int,
    ) -> Segment:
        """Add the tensors of a segment and return it.

        ``mlp``: the width of this stage's MLPs; ``usual``: that of the model's other layers.
        """
        shapes = {**attention, "gate_proj": (mlp, width), "up_proj": (mlp, width), "down_proj": (width, mlp)}
        for j in range(layers):
            stem, target = f"{stage}.{j}", f"segments.{number}.layers.{j}"
            for norm, theirs in NORMS.items():
                name = f"{stem}.{theirs}.weight"
                self.add(f"{target}.{norm}.weight", name, (repeats, width), first=repeats == 1)
            for projection, (d_out, d_in) in shapes.items():
                name, ours = f"{stem}.{projection}", f"{target}.{projection}"
                self.add(f"{ours}.weight", f"{name}.weight", (d_out, d_in))
                if rank and projection in ATTENTION:
                    self.add(f"{ours}.lora_a", f"{name}.lora_a", (repeats, rank, d_in))
                    self.add(f"{ours}.lora_b", f"{name}.lora_b", (repeats, d_out, rank), scale=self.scale)
        lora = dict.fromkeys(ATTENTION, rank) if rank else {}
        return Segment(layers, repeats, repeats > 1, lora, mlp=None if mlp == usual else mlp)


def _load(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], first: bool, scale: float
) -> torch.Tensor:
    tensor = checkpoint.tensor(name, shape)
    return tensor[0] if first else tensor * scale if scale != 1.0 else tensor


def _routing(config: Mapping[str, Any], repeats: int, where: str) -> Routing | None:
    """Return expert choice with a linear sigmoid router (``apps/demo/routed.py``), where config.json has its keys."""
    shares = config.get("router_capacity")
    if shares is None:
        if config.get("router_alpha") is not None:
            raise CheckpointError(f"{where} has router_alpha and no router_capacity; a router needs both")
        return None
    alpha = number(config, "router_alpha", where)
    numbers = isinstance(shares, list) and not any(
        isinstance(s, bool) or not isinstance(s, int | float) or not 0 < s <= 1 for s in shares
    )
    capacity = tuple(float(s) for s in shares) if numbers else ()
    check_capacity(capacity, repeats, f"{where}: router_capacity is {shown(shares)}")
    return Routing(kind="expert", squash="sigmoid", alpha=alpha, capacity=capacity)


def _kv(
    config: Mapping[str, Any], repeats: int, routing: Routing | None, where: str
) -> Literal["per-depth", "shared"]:
    kv = config.get("kv", "per-depth")
    if kv == "per-depth":
        return "per-depth"
    if kv != "shared":
        raise CheckpointError(f"{where}: kv is {shown(kv)}; wanted per-depth or shared")
    if repeats < 2 or routing is not None:
        raise CheckpointError(
            f"{where}: kv is shared, which is for a loop of two depths or more without a router"
        )
    return "shared"


def _count(
    config: Mapping[str, Any], key: str, where: str, minimum: int = 0, maximum: int | None = None
) -> int:
    """Return an integer from ``minimum`` to ``maximum``; CheckpointError for anything else."""
    value = config.get(key)
    if maximum is None:
        maximum = MAX_SIZE if key == "lora_rank" else MAX_LAYERS
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise CheckpointError(
            f"{where}: {key} is {shown(value)}; wanted an integer from {minimum} to {maximum}"
        )
    return value
