"""Reads canonical tensors from a checkpoint: what is shared is checked, loaders are made, nothing is loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from ...runtime.errors import CheckpointError
from ...runtime.model.weights import Delta, Weight, canonical
from ..checkpoint import Checkpoint
from ..family import Loader
from . import is_buffer
from .lora import Loras, Scale, by_depth
from .lora_scale import adapter_scale
from .ties import LayerNames, TiedRun

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
DELTAS = ("lora_a", "lora_b", "lora_scale")
"""The tensors of a delta."""


@dataclass(frozen=True)
class FusedRows:
    """``count`` parts from ``number`` on, of the ``parts`` equal parts of a fused tensor, whose rows are ``groups``
    times these parts in turn.

    Where the rows are q, k and v of head 0, then of head 1 …, those of q are ``FusedRows(0, 3, heads)``; where they are
    four heads of q, two of k and two of v, those of k are ``FusedRows(4, 8, count=2)``.
    """

    number: int
    parts: int
    groups: int = 1
    count: int = 1


@dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint, and which of its rows; None: all. ``plus`` is added to each number (norms of 1 + w)."""

    name: str
    rows: FusedRows | None = None
    plus: float = 0.0


@dataclass(frozen=True)
class Whole:
    """The loader of a stored tensor as it is, whole or in pieces."""

    checkpoint: Checkpoint
    name: str
    shape: Shape

    def __call__(self) -> torch.Tensor:
        """Return the float32 tensor."""
        return self.checkpoint.tensor(self.name, self.shape)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield its rows, some at a time."""
        return self.checkpoint.pieces(self.name, self.shape)


class Reader:
    """Collects loaders of canonical tensors, and the names that were used."""

    def __init__(self, names: LayerNames, scale: Scale | Literal["adapter"] | None = "adapter") -> None:
        """``scale``: of LoRAs; ``adapter``: as adapter_config.json has it, if there is one."""
        self.names, self.checkpoint = names, names.checkpoint
        self.tensors: dict[str, Loader] = {}
        self.used: set[str] = set()
        scale = adapter_scale(self.checkpoint) if scale == "adapter" else scale
        self.loras = Loras(self.checkpoint, names.prefix, scale, self.used)

    def plain(self, name: str, stored: str | Source, shape: Shape, *, merged: bool = True) -> None:
        """Add the canonical tensor ``name``, which is the stored one or some of its rows; ``merged``: with its LoRA."""
        self.tensors[name] = self._loader(
            Source(stored) if isinstance(stored, str) else stored, shape, merged
        )

    def stacked(self, name: str, stored: Sequence[str], shape: Shape, *, merged: bool = True) -> None:
        """Add the canonical tensor ``name``, which is one stored tensor of ``shape`` for each depth."""
        self.tensors[name] = partial(
            _stack, [self._loader(Source(each), shape, merged) for each in stored], shape
        )

    def delta_of(self, groups: Sequence[Sequence[str]]) -> Delta | None:
        """Return the delta of matrices, given by group, a matrix of which there is one for each depth; None where no
        LoRA differs between depths, so that it can be added to the matrix."""
        if not any(self.loras.differ(group) for group in groups):
            return None
        matrices = [matrix for group in groups for matrix in group]
        return Delta(max(map(self.loras.rank, matrices)), any(map(self.loras.rescales, matrices)))

    def delta(self, stem: str, sources: Sequence[Source], shape: Shape, delta: Delta) -> None:
        """Add the ``delta`` of the canonical matrix ``stem``, of ``shape``: the LoRA of one of ``sources`` at each
        depth."""
        rows = sources[0].rows
        loras = [self.loras.of(source.name, _whole(shape, rows)) for source in sources]
        weights = [self._loader(source, shape, merged=False) for source in sources]
        made = by_depth(loras, weights, partial(_cut, rows), (shape[0], shape[1]), delta.rank)
        for kind in ("lora_a", "lora_b", *["lora_scale"] * delta.rescaled):
            self.tensors[f"{stem}.{kind}"] = made[kind]

    def tied(self, group: Sequence[str], shape: Shape) -> None:
        """Mark a group as used; CheckpointError unless all of it is one tensor."""
        for name in group:
            self.checkpoint.require(name, shape)
            if not self.checkpoint.same(group[0], name):
                raise CheckpointError(
                    f"{self.checkpoint.folder}: {group[0]} and {name} should be shared, but differ; "
                    "the config is not this checkpoint's, or the weights were changed after training"
                )
        self.used.update(group)

    def differ(self, groups: Iterable[tuple[Sequence[str], Shape]]) -> bool:
        """Return whether any group, given with the shape of its tensors, has two that differ; mark all as used."""
        differ = False
        for group, shape in groups:
            for name in group:
                self.checkpoint.require(name, shape)
            self.used.update(group)
            differ = differ or not all(self.checkpoint.same(group[0], name) for name in group)
        return differ

    def layers(
        self, weights: Mapping[str, Weight], plan: Sequence[TiedRun], sources: Mapping[str, Source]
    ) -> None:
        """Add all tensors that ``weights`` have in the layers of ``plan``.

        ``sources``: by the canonical name of a tensor within its layer, the checkpoint's tensor in the layer.
        """
        found = {tensor.name: tensor for tensor in canonical(weights) if tensor.name.startswith("segments.")}
        for name, tensor in found.items():
            stem, _, kind = name.rpartition(".")
            if kind in DELTAS:
                continue
            _, segment, _, layer, part = name.split(".", 4)
            source, applied = sources[part], plan[int(segment)].applied[int(layer)]
            stored = [
                replace(source, name=f"{self.names.inside}{number}.{source.name}") for number in applied
            ]
            ours = kind == "weight" and f"{stem}.lora_a" in found
            differs = self.delta_of([[each.name for each in stored]]) if ours else None
            loaders = [self._loader(each, tensor.shape, differs is None) for each in stored]
            if tensor.per_depth:
                self.tensors[name] = partial(_stack, loaders, tensor.shape)
            else:
                self.tied([each.name for each in stored], _whole(tensor.shape, source.rows))
                self.tensors[name] = loaders[0]
            if differs is not None:
                self.delta(stem, stored, tensor.shape, differs)

    def head_is_embedding(self, head: str, declared: bool, insisted: bool = False) -> bool:
        """Return whether the matrix ``head`` is the embedding's. Where both are stored, their content decides.

        ``declared``: tie_word_embeddings. ``insisted``: that they differ is an error, not a warning.
        """
        folder, embed = self.checkpoint.folder, self.names.embed
        if head not in self.checkpoint.names:
            if declared or insisted:
                return True
            raise CheckpointError(
                f"{folder} has no tensor {head}, and config.json says tie_word_embeddings false"
            )
        self.used.add(head)
        if self.checkpoint.same(embed, head):
            return True
        if insisted:
            raise CheckpointError(f"{folder}: share_embedding is true, but {head} and {embed} differ")
        if declared:
            logger.warning(
                "config.json says tie_word_embeddings, but %s differs from %s: read as an untied head",
                head,
                embed,
            )
        return False

    def refuse_leftovers(self, wanted: str, known: Collection[str] = ()) -> None:
        """Raise CheckpointError for an unread tensor of a layer (a bias, a gate, …): it would change what is
        computed."""
        own = (
            self.checkpoint.names - self.checkpoint.adapter_names
        )  # of an adapter's, read_checkpoint takes care
        unread = (n for n in own - self.used - set(known) if not is_buffer(n))
        left = (n for n in unread if n.startswith(self.names.inside) or ".lora_" in n)
        if name := min(left, default=None):
            raise CheckpointError(
                f"{self.checkpoint.folder}: {name} is part of a layer and not understood; wanted {wanted}"
            )

    def _loader(self, source: Source, shape: Shape, merged: bool = True) -> Loader:
        """Return the loader of a tensor of ``shape``, which is checked by the header alone; ``merged``: with its
        LoRA."""
        whole = _whole(shape, source.rows)
        self.checkpoint.require(source.name, whole)
        self.used.add(source.name)
        load: Loader = Whole(self.checkpoint, source.name, whole)
        load = load if source.rows is None else partial(_rows, load, source.rows)
        # PEFT's LoRA of an embedding has other names: one that is called as a matrix's is another model's.
        if merged and source.name != self.names.embed and (lora := self.loras.of(source.name, whole)):
            load = partial(lora.added, load, partial(_cut, source.rows))
        return partial(_raised, load, source.plus) if source.plus else load


def _whole(shape: Shape, rows: FusedRows | None) -> Shape:
    """Return the shape of the tensor that has ``shape`` in some of its rows."""
    return shape if rows is None else (rows.parts * shape[0] // rows.count, *shape[1:])


def _rows(load: Loader, rows: FusedRows) -> torch.Tensor:
    return _cut(rows, load())


def _cut(rows: FusedRows | None, whole: torch.Tensor) -> torch.Tensor:
    if rows is None:
        return whole
    parts: torch.Tensor = whole.unflatten(0, (rows.groups, rows.parts, -1))
    return parts[:, rows.number : rows.number + rows.count].flatten(0, 2).contiguous()


def _raised(load: Loader, by: float) -> torch.Tensor:
    return load() + by


def _stack(loaders: Sequence[Loader], shape: Shape) -> torch.Tensor:
    """Return [len(loaders), *shape]."""
    stack = torch.empty(len(loaders), *shape)
    for place, load in zip(stack, loaders, strict=True):
        place.copy_(load())
    return stack
