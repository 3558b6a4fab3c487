"""The layers of a checkpoint by their numbers, and the repetitions among them.

The layers of a looped checkpoint are often written out one by one, as if unrolled. What repeats is found in the weights
themselves, tensor by tensor, never in a flag: ``plan_from_ties``. A family that knows what repeats writes the plan, a
list of ``TiedRun``, itself.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..checkpoint.situations import what_names

MAX_LAYERS = 1024


@dataclass(frozen=True)
class TiedRun:
    """A segment by the checkpoint's layers: ``applied[j][d]`` is the stored layer that is layer j at depth d."""

    applied: tuple[tuple[int, ...], ...]
    per_repeat_norms: bool | None = None
    """None: as the weights say. False: norms must be tied, which is checked."""
    own_attention: bool = False
    """q, k, v and o may differ between depths, as the weights say; else they must be tied, which is checked."""


class LayerNames:
    """The names of a checkpoint's tensors, under any wrapper's prefix (PEFT, DDP, torch.compile).

    A family says where the embedding and the layers are, and which tensors of a layer its repetitions share.
    ``kinds``: what tells layers apart beside their weights, as a window that only some have; one for each, or none.
    """

    whose: str
    embedding: str
    stack: str
    kinds: Sequence[Hashable] = ()

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        found = sorted(n for n in checkpoint.names if n.endswith(self.embedding))
        if len(found) != 1:
            if not found and (line := what_names(checkpoint.names)):
                raise CheckpointError(f"{checkpoint.folder} {line}")
            what = f"{len(found)} tensors" if found else "no tensor"
            raise CheckpointError(
                f"{checkpoint.folder} has {what} named {self.embedding}; wanted one, as {self.whose} models have"
            )
        self.embed = found[0]
        self.prefix = found[0].removesuffix(self.embedding)
        self.inside = f"{self.prefix}{self.stack}."
        pattern = re.compile(re.escape(self.inside) + r"(\d{1,6})\.")
        matches = (pattern.match(n) for n in checkpoint.names - checkpoint.adapter_names)
        numbers = {int(m[1]) for m in matches if m}
        self.layers = len(numbers)
        if not numbers or numbers != set(range(self.layers)) or self.layers > MAX_LAYERS:
            raise CheckpointError(
                f"{checkpoint.folder} has layers numbered {_ranges(numbers)}; wanted 0, 1, 2 … without gaps, "
                f"{MAX_LAYERS} at most"
            )

    def shared(self, layer: int) -> list[str]:
        """Return the tensors of a layer that are the same ones in every layer that repeats it."""
        raise NotImplementedError


def plan_from_ties(names: LayerNames) -> list[TiedRun]:
    """Return the runs found in the weights; empty if nothing repeats.

    One loop of K layers × R, or runs of equal neighbours, whichever covers more layers; of loops that cover as
    much, the one with the smallest K.
    """
    first: dict[tuple[int, ...], int] = {}
    classes = [first.setdefault(tensors, layer) for layer, tensors in enumerate(first_same(names))]
    start, k, repeats = find_loop(classes)
    runs = find_runs(classes)
    in_runs = sum(length for _, length in runs if length > 1)
    if in_runs > k * repeats:
        return _merge([TiedRun((tuple(range(at, at + length)),)) for at, length in runs])
    if repeats < 2:
        return []
    block = TiedRun(tuple(tuple(start + j + d * k for d in range(repeats)) for j in range(k)))
    end = start + k * repeats
    return [r for r in (plain(range(start)), block, plain(range(end, names.layers))) if r.applied]


def first_same(names: LayerNames) -> list[tuple[int, ...]]:
    """Return for each layer and each of its shared tensors, and of its kind, the first layer that has the same one."""
    layers = [names.shared(layer) for layer in range(names.layers)]
    columns = [names.checkpoint.first_same(group) for group in zip(*layers, strict=True)]
    if names.kinds:
        columns.append([names.kinds.index(kind) for kind in names.kinds])
    return list(zip(*columns, strict=True))


def plain(layers: Sequence[int]) -> TiedRun:
    """Return the run of layers that are applied once."""
    return TiedRun(tuple((layer,) for layer in layers))


def find_loop(classes: Sequence[int]) -> tuple[int, int, int]:
    """Return (start, K, R) of the loop that covers most layers, of those with the smallest K; R is 1 if none."""
    best, n = (0, 1, 1), len(classes)
    covered = 1
    for k in range(1, n // 2 + 1):
        match = 0  # how many layers from here on equal the one K later
        for start in range(n - k - 1, -1, -1):
            match = match + 1 if classes[start] == classes[start + k] else 0
            repeats = 1 + match // k
            # ">=" at equal K: the earliest start of the longest loop.
            if repeats > 1 and (k * repeats > covered or (k * repeats == covered and best[1] == k)):
                best, covered = (start, k, repeats), k * repeats
    return best


def find_runs(classes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, length) of each run of equal neighbours, covering all layers."""
    runs: list[tuple[int, int]] = []
    for at, c in enumerate(classes):
        if runs and classes[runs[-1][0]] == c:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((at, 1))
    return runs


def _merge(runs: Sequence[TiedRun]) -> list[TiedRun]:
    """Return the runs with neighbouring layers that are applied once merged into one."""
    merged: list[TiedRun] = []
    for run in runs:
        single = len(run.applied[0]) == 1
        if single and merged and len(merged[-1].applied[0]) == 1:
            merged[-1] = TiedRun(merged[-1].applied + run.applied)
        else:
            merged.append(run)
    return merged


def _ranges(numbers: set[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:8])) + (" …" if len(listed) > 8 else "") if listed else "nothing"
