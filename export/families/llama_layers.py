"""From a plan of runs to a Reading: ties, shapes and dtypes checked, loaders made, nothing loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch

from ...runtime.errors import CheckpointError
from ...runtime.llama_like import program_of
from ...runtime.spec import Segment, Spec
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from . import is_buffer
from .llama_config import LlamaConfig
from .llama_ties import ATTENTION, SANDWICH_NORMS, LlamaNames, Run

logger = logging.getLogger(__name__)

Scale = Callable[[str, int], float]
"""(module name without PEFT's prefix, rank) → LoRA scale."""


def read_layers(
    names: LlamaNames,
    config: LlamaConfig,
    plan: Sequence[Run],
    family: str,
    *,
    scale: Scale | None = None,
    share_embedding: bool = False,
    loop_norm: bool = False,
    read: Collection[str] = (),
) -> Reading:
    """The Reading of a plan: ties, shapes and dtypes checked from headers and hashes, no tensor loaded.

    CheckpointError names two tensors that ought to be tied, a tensor that is missing or of a wrong shape, one
    inside a layer that nothing reads (it would change what is computed), and a LoRA without a known scale.
    ``read`` are names that the family has read itself.
    """
    checkpoint, c = names.checkpoint, config
    reader = _Reader(names, config, scale)
    reader.used.update(read)
    segments = tuple(reader.segment(i, run) for i, run in enumerate(plan))
    reader.plain("embed.weight", names.embed, (c.vocab_size, c.hidden_size))
    reader.plain("norm.weight", names.norm, (c.hidden_size,))
    tied = _is_tied(names, config, share_embedding)
    if names.head in checkpoint.names:
        reader.used.add(names.head)
    if not tied:
        reader.plain("head.weight", names.head, (c.vocab_size, c.hidden_size))
    reader.refuse_leftovers()
    spec = Spec(
        family=family,
        segments=segments,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        norm_eps=c.norm_eps,
        rope_theta=c.rope_theta,
        context_length=c.context_length,
        tied_embedding=tied,
        sandwich_norms=names.norms is SANDWICH_NORMS,
        loop_norm=loop_norm,
        sliding_window=c.sliding_window,
        bos_token_id=c.bos_token_id,
        eos_token_ids=c.eos_token_ids,
    )
    return Reading(program_of(spec), reader.tensors, frozenset(reader.used))


class _Reader:
    """Collects loaders and used names, segment by segment."""

    def __init__(self, names: LlamaNames, config: LlamaConfig, scale: Scale | None) -> None:
        self.names, self.checkpoint, self.scale = names, names.checkpoint, scale
        self.tensors: dict[str, Loader] = {}
        self.used: set[str] = set()
        d, q, kv = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        f = config.intermediate_size
        self.width = d
        self.shapes = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        self.shapes |= {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}

    def plain(self, canonical: str, name: str, shape: tuple[int, ...]) -> None:
        self.checkpoint.require(name, shape)
        self.tensors[canonical] = partial(self.checkpoint.tensor, name, shape)
        self.used.add(name)

    def segment(self, number: int, run: Run) -> Segment:
        prefix = f"segments.{number}.layers"
        lora: dict[str, int] = {}
        own_attention = run.own_attention and self.attention_differs(run)
        for j, applied in enumerate(run.applied):
            for projection, shape in self.shapes.items():
                linears = [self.names.linear(layer, projection) for layer in applied]
                canonical = f"{prefix}.{j}.{projection}.weight"
                if own_attention and projection in ATTENTION:
                    self.tensors[canonical] = partial(_stack, self.checkpoint, linears, shape)
                else:
                    self.tied(linears, shape)
                    self.plain(canonical, linears[0], shape)
        for projection in self.shapes:
            pairs = [[self.names.lora(layer, projection) for layer in applied] for applied in run.applied]
            if all(len(set(row)) == 1 for row in pairs):
                self.merged(prefix, run, projection, [row[0] for row in pairs])
            else:
                lora[projection] = self.lora(prefix, run, projection, pairs)
        per_repeat = self.norms_differ(run)
        repeats = len(run.applied[0])
        for j, applied in enumerate(run.applied):
            for norm in self.names.norms:
                rows = [self.names.norm_of(layer, norm) for layer in applied]
                canonical = f"{prefix}.{j}.{norm}.weight"
                if per_repeat:
                    self.tensors[canonical] = partial(_stack, self.checkpoint, rows, (self.width,))
                else:
                    self.plain(canonical, rows[0], (self.width,))
        return Segment(len(run.applied), repeats, per_repeat, lora, own_attention)

    def tied(self, group: Sequence[str], shape: tuple[int, ...]) -> None:
        """Mark a group as used and insist that it is one tensor."""
        for name in group:
            self.checkpoint.require(name, shape)
            if not self.checkpoint.same(group[0], name):
                raise CheckpointError(
                    f"{self.checkpoint.folder}: {group[0]} and {name} ought to be shared, and differ; "
                    "the config is not this checkpoint's, or the weights were changed after training"
                )
        self.used.update(group)

    def attention_differs(self, run: Run) -> bool:
        """Has any layer of the run another q, k, v or o at another depth? All are checked and marked as used."""
        differ = False
        for applied in run.applied:
            for projection in ATTENTION:
                names = [self.names.linear(layer, projection) for layer in applied]
                for name in names:
                    self.checkpoint.require(name, self.shapes[projection])
                self.used.update(names)
                differ = differ or not all(self.checkpoint.same(names[0], name) for name in names)
        return differ

    def norms_differ(self, run: Run) -> bool:
        differ = False
        for applied in run.applied:
            for norm in self.names.norms:
                rows = [self.names.norm_of(layer, norm) for layer in applied]
                if run.per_repeat_norms is False:
                    self.tied(rows, (self.width,))
                for name in rows:
                    self.checkpoint.require(name, (self.width,))
                self.used.update(rows)
                differ = differ or not all(self.checkpoint.same(rows[0], name) for name in rows)
        return len(run.applied[0]) > 1 and (differ or bool(run.per_repeat_norms))

    def merged(self, prefix: str, run: Run, projection: str, pairs: Sequence[tuple[str, str] | None]) -> None:
        """A LoRA that does not differ between depths is no delta: it is added to its matrix."""
        for j, pair in enumerate(pairs):
            if pair is None:
                continue
            layer = run.applied[j][0]
            _, scale = self.pair(layer, projection, pair)
            name, shape = self.names.linear(layer, projection), self.shapes[projection]
            self.tensors[f"{prefix}.{j}.{projection}.weight"] = partial(
                _merge, self.checkpoint, name, shape, pair, scale
            )

    def pair(self, layer: int, projection: str, pair: tuple[str, str]) -> tuple[int, float]:
        """Mark A and B of a layer's projection as used, and check them → (rank, scale)."""
        d_out, d_in = self.shapes[projection]
        rank = (*self.checkpoint.shape(pair[0]), 0)[0]
        if not 0 < rank <= max(d_in, d_out):
            raise CheckpointError(
                f"{self.checkpoint.folder}: {pair[0]} has rank {rank}; wanted 1 … {max(d_in, d_out)}"
            )
        if self.scale is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: {pair[0]} is a LoRA whose scale is nowhere: wanted conf.yaml or "
                "adapter_config.json beside the weights"
            )
        for name, shape in zip(pair, ((rank, d_in), (d_out, rank)), strict=True):
            self.checkpoint.require(name, shape)
            self.used.add(name)
        return rank, self.scale(self.names.module(layer, projection), rank)

    def lora(
        self, prefix: str, run: Run, projection: str, pairs: Sequence[Sequence[tuple[str, str] | None]]
    ) -> int:
        """Add A and B of one projection of the segment; a depth without a delta gets zeros. Returns the rank.

        Depths of lower rank (PEFT's rank_pattern) are filled up with zeros.
        """
        d_out, d_in = self.shapes[projection]
        known = [
            [
                self.pair(layer, projection, pair) if pair else (0, 0.0)
                for layer, pair in zip(*row, strict=True)
            ]
            for row in zip(run.applied, pairs, strict=True)
        ]
        rank = max(r for row in known for r, _ in row)
        for j, row in enumerate(pairs):
            sides = [[pair[side] if pair else None for pair in row] for side in (0, 1)]
            stem = f"{prefix}.{j}.{projection}"
            self.tensors[f"{stem}.lora_a"] = partial(_stack, self.checkpoint, sides[0], (rank, d_in))
            self.tensors[f"{stem}.lora_b"] = partial(
                _stack, self.checkpoint, sides[1], (d_out, rank), [scale for _, scale in known[j]]
            )
        return rank

    def refuse_leftovers(self) -> None:
        """A bias, a gate, a magnitude: unread inside a layer, it would change what the layer computes."""
        inside = f"{self.names.prefix}model.layers."
        own = (
            self.checkpoint.names - self.checkpoint.adapter_names
        )  # of an adapter's, read_checkpoint takes care
        unread = (n for n in own - self.used if not is_buffer(n))
        left = (n for n in unread if n.startswith(inside) or ".lora_" in n)
        if name := min(left, default=None):
            raise CheckpointError(
                f"{self.checkpoint.folder}: {name} is part of a layer and not understood; wanted plain Llama "
                "layers (linears without bias, RMSNorms, LoRA)"
            )


def _is_tied(names: LlamaNames, config: LlamaConfig, share_embedding: bool) -> bool:
    """Does the head read out with the embedding? By content where both are stored."""
    if names.head not in names.checkpoint.names:
        if config.tie_word_embeddings or share_embedding:
            return True
        raise CheckpointError(
            f"{names.checkpoint.folder} has no tensor {names.head}, and config.json says tie_word_embeddings false"
        )
    if names.checkpoint.same(names.embed, names.head):
        return True
    if share_embedding:
        raise CheckpointError(
            f"{names.checkpoint.folder}: share_embedding is true, but {names.head} and {names.embed} differ"
        )
    if config.tie_word_embeddings:
        logger.warning(
            "config.json says tie_word_embeddings, but %s differs from %s: read as an untied head",
            names.head,
            names.embed,
        )
    return False


def _merge(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], pair: tuple[str, str], scale: float
) -> torch.Tensor:
    a, b = (checkpoint.tensor(side) for side in pair)
    return checkpoint.tensor(name, shape) + scale * (b @ a)


def _stack(
    checkpoint: Checkpoint,
    names: Sequence[str | None],
    shape: tuple[int, ...],
    scales: Sequence[float] | None = None,
) -> torch.Tensor:
    """[len(names), *shape]; None is a row of zeros, and so is what a smaller tensor lacks."""
    stack = torch.zeros(len(names), *shape)
    for i, name in enumerate(names):
        if name is not None:
            tensor = checkpoint.tensor(name)
            place = stack[i][tuple(slice(size) for size in tensor.shape)]
            place.copy_(tensor if scales is None else tensor * scales[i])
    return stack
