"""From a plan of runs to a Reading: ties, shapes and dtypes are checked, loaders made, nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import LlamaConfig
from .llama_names import ATTENTION, SANDWICH_NORMS, LlamaNames
from .llama_program import program_of
from .llama_spec import Segment, Spec
from .reader import Reader
from .ties import TiedRun

Scale = Callable[[str, int], float]
"""(module name without PEFT's prefix, rank) → LoRA scale."""


def read_layers(
    names: LlamaNames,
    config: LlamaConfig,
    plan: Sequence[TiedRun],
    family: str,
    *,
    scale: Scale | None = None,
    share_embedding: bool = False,
    loop_norm: bool = False,
    read: Collection[str] = (),
) -> Reading:
    """Return the Reading of a plan: ties, shapes and dtypes checked from headers and hashes, no tensor loaded.

    CheckpointError names two tensors that should be tied, a tensor that is missing or of a wrong shape, one
    inside a layer that nothing reads (it would change what is computed), and a LoRA without a known scale. ``read``
    are names that the family has read itself.
    """
    c = config
    reader = _LlamaReader(names, config, scale)
    reader.used.update(read)
    segments = tuple(reader.segment(i, run) for i, run in enumerate(plan))
    reader.plain("embed.weight", names.embed, (c.vocab_size, c.hidden_size))
    reader.plain("norm.weight", names.norm, (c.hidden_size,))
    tied = reader.head_is_embedding(names.head, c.tie_word_embeddings, share_embedding)
    if not tied:
        reader.plain("head.weight", names.head, (c.vocab_size, c.hidden_size))
    reader.refuse_leftovers("plain Llama layers (linears without bias, RMSNorms, LoRA)")
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
        rope_theta=c.rotation.theta,
        rope_scaling=c.rotation.scaling,
        context_length=c.context_length,
        tied_embedding=tied,
        sandwich_norms=names.norms is SANDWICH_NORMS,
        loop_norm=loop_norm,
        sliding_window=c.sliding_window,
        bos_token_id=c.bos_token_id,
        eos_token_ids=c.eos_token_ids,
    )
    return Reading(program_of(spec), reader.tensors, frozenset(reader.used))


class _LlamaReader(Reader):
    """Reads segment by segment."""

    names: LlamaNames

    def __init__(self, names: LlamaNames, config: LlamaConfig, scale: Scale | None) -> None:
        super().__init__(names)
        self.scale = scale
        d, q, kv = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        f = config.intermediate_size
        self.width = d
        self.shapes = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        self.shapes |= {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}

    def segment(self, number: int, run: TiedRun) -> Segment:
        """Add the tensors of a run and return its segment."""
        prefix = f"segments.{number}.layers"
        lora: dict[str, int] = {}
        rescaled = list[str]()
        own_attention = run.own_attention and self.attention_differs(run)
        for j, applied in enumerate(run.applied):
            for projection, shape in self.shapes.items():
                linears = [self.names.linear(layer, projection) for layer in applied]
                canonical = f"{prefix}.{j}.{projection}.weight"
                if own_attention and projection in ATTENTION:
                    self.stacked(canonical, linears, shape)
                else:
                    self.tied(linears, shape)
                    self.plain(canonical, linears[0], shape)
        for projection in self.shapes:
            pairs = [[self.names.lora(layer, projection) for layer in applied] for applied in run.applied]
            if all(len(set(row)) == 1 for row in pairs):
                self.merged(prefix, run, projection, [row[0] for row in pairs])
            else:
                lora[projection] = self.lora(prefix, run, projection, pairs)
                if any(len(pair or ()) > 2 for row in pairs for pair in row):
                    self.rescaled(prefix, run, projection, pairs)
                    rescaled.append(projection)
        per_repeat = self.norms_differ(run)
        repeats = len(run.applied[0])
        for j, applied in enumerate(run.applied):
            for norm in self.names.norms:
                rows = [self.names.norm_of(layer, norm) for layer in applied]
                canonical = f"{prefix}.{j}.{norm}.weight"
                if per_repeat:
                    self.stacked(canonical, rows, (self.width,))
                else:
                    self.plain(canonical, rows[0], (self.width,))
        encoded = self.encoded(prefix, run)
        return Segment(
            len(run.applied),
            repeats,
            per_repeat,
            lora,
            own_attention,
            rescaled=tuple(rescaled),
            encoded=encoded,
        )

    def encoded(self, prefix: str, run: TiedRun) -> bool:
        """Add the vectors that multiply what the run's last layer gives, a depth each, where it has them."""
        rows = [name for layer in run.applied[-1] if (name := self.names.encoding(layer))]
        if not rows:
            return False
        self.stacked(f"{prefix}.{len(run.applied) - 1}.encoding.weight", rows, (self.width,))
        return True

    def attention_differs(self, run: TiedRun) -> bool:
        """Return whether any layer of the run has another q, k, v or o at another depth."""
        return self.differ(
            ([self.names.linear(layer, projection) for layer in applied], self.shapes[projection])
            for applied in run.applied
            for projection in ATTENTION
        )

    def norms_differ(self, run: TiedRun) -> bool:
        """Return whether the norms of the run differ between depths."""
        groups = [
            [self.names.norm_of(layer, norm) for layer in applied]
            for applied in run.applied
            for norm in self.names.norms
        ]
        if run.per_repeat_norms is False:
            for group in groups:
                self.tied(group, (self.width,))
        differ = self.differ((group, (self.width,)) for group in groups)
        return len(run.applied[0]) > 1 and (differ or bool(run.per_repeat_norms))

    def merged(
        self, prefix: str, run: TiedRun, projection: str, pairs: Sequence[tuple[str, ...] | None]
    ) -> None:
        """Add a LoRA to its matrix, because it does not differ between depths."""
        for j, pair in enumerate(pairs):
            if pair is None:
                continue
            layer = run.applied[j][0]
            _, scale = self.pair(layer, projection, pair)
            name, shape = self.names.linear(layer, projection), self.shapes[projection]
            self.tensors[f"{prefix}.{j}.{projection}.weight"] = partial(
                _merge, self.checkpoint, name, shape, pair, scale
            )

    def pair(self, layer: int, projection: str, pair: tuple[str, ...]) -> tuple[int, float]:
        """Mark A and B (and the lengths) of a layer's projection as used, check them, and return (rank, scale)."""
        d_out, d_in = self.shapes[projection]
        rank = (*self.checkpoint.shape(pair[0]), 0)[0]
        if not 0 < rank <= max(d_in, d_out):
            raise CheckpointError(
                f"{self.checkpoint.folder}: {pair[0]} has rank {rank}; wanted 1 … {max(d_in, d_out)}"
            )
        if self.scale is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: {pair[0]} is a LoRA without a scale: wanted conf.yaml or "
                "adapter_config.json beside the weights"
            )
        for name, shape in zip(pair, ((rank, d_in), (d_out, rank), (d_out,)), strict=False):
            self.checkpoint.require(name, shape)
            self.used.add(name)
        return rank, self.scale(self.names.module(layer, projection), rank)

    def lora(
        self, prefix: str, run: TiedRun, projection: str, pairs: Sequence[Sequence[tuple[str, ...] | None]]
    ) -> int:
        """Add A and B of one projection of the segment, with zeros for depths without a delta; return the rank.

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
            self.tensors[f"{stem}.lora_a"] = partial(_padded, self.checkpoint, sides[0], (rank, d_in))
            self.tensors[f"{stem}.lora_b"] = partial(
                _padded, self.checkpoint, sides[1], (d_out, rank), [scale for _, scale in known[j]]
            )
        return rank

    def rescaled(
        self, prefix: str, run: TiedRun, projection: str, pairs: Sequence[Sequence[tuple[str, ...] | None]]
    ) -> None:
        """Add what each row of one projection of the segment is multiplied by, of which depths without DoRA have 1."""
        shape = self.shapes[projection]
        for j, (applied, row) in enumerate(zip(run.applied, pairs, strict=True)):
            scales = [
                self.pair(layer, projection, pair)[1] if pair else 0.0
                for layer, pair in zip(applied, row, strict=True)
            ]
            self.tensors[f"{prefix}.{j}.{projection}.lora_scale"] = partial(
                _row_scales, self.checkpoint, self.names.linear(applied[0], projection), shape, row, scales
            )


def _merge(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], pair: tuple[str, ...], scale: float
) -> torch.Tensor:
    a, b = (checkpoint.tensor(side) for side in pair[:2])
    merged = checkpoint.tensor(name, shape) + scale * (b @ a)
    return merged if len(pair) == 2 else merged * _row_scale(checkpoint, merged, pair[2])[:, None]


def _row_scale(checkpoint: Checkpoint, merged: torch.Tensor, lengths: str) -> torch.Tensor:
    """Return [out]: DoRA's length of each row over the one that ``merged`` has (arXiv 2402.09353, equation 5)."""
    own = torch.linalg.vector_norm(merged, dim=1)
    if not own.all():
        raise CheckpointError(
            f"{checkpoint.folder}: {lengths} are lengths of rows of which one is zero; export a checkpoint from before "
            "training diverged"
        )
    scale: torch.Tensor = checkpoint.tensor(lengths) / own
    return scale


def _row_scales(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    rows: Sequence[tuple[str, ...] | None],
    scales: Sequence[float],
) -> torch.Tensor:
    """Return [len(rows), out]: the row scale of each depth, 1 where it has none."""
    weight, stack = checkpoint.tensor(name, shape), torch.ones(len(rows), shape[0])
    for place, row, scale in zip(stack, rows, scales, strict=True):
        if row is not None and len(row) > 2:
            a, b = (checkpoint.tensor(side) for side in row[:2])
            place.copy_(_row_scale(checkpoint, weight + scale * (b @ a), row[2]))
    return stack


def _padded(
    checkpoint: Checkpoint,
    names: Sequence[str | None],
    shape: tuple[int, ...],
    scales: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return [len(names), *shape]; None is a row of zeros, and smaller tensors are filled up with zeros."""
    stack = torch.zeros(len(names), *shape)
    for i, name in enumerate(names):
        if name is not None:
            tensor = checkpoint.tensor(name)
            place = stack[i][tuple(slice(size) for size in tensor.shape)]
            place.copy_(tensor if scales is None else tensor * scales[i])
    return stack
