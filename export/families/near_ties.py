"""Finds what repeats in an ordinary folder, and says why nothing does, or less than it might.

A block may be broken by a few tensors, or the model be an ordinary one.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from ...runtime.errors import CheckpointError
from .ties import LayerNames, TiedRun, find_loop, first_same, plan_from_ties

logger = logging.getLogger(__name__)

NAMED = 3


def found_plan(names: LayerNames, declared: int) -> list[TiedRun]:
    """Return what repeats; CheckpointError, or a warning where some does, says what keeps more from repeating.

    ``declared``: the layers that config.json says there are.
    """
    folder = names.checkpoint.folder
    if names.layers != declared:
        raise CheckpointError(
            f"{folder}: config.json says num_hidden_layers {declared}, the weights have {names.layers} layers; they "
            "do not belong together"
        )
    plan = plan_from_ties(names)
    covered = sum(len(run.applied) * len(run.applied[0]) for run in plan if len(run.applied[0]) > 1)
    broken = broken_loop(names, covered)
    if broken and plan:
        logger.warning("%s: %s; they are stored one by one", folder, broken)
    elif broken:
        raise CheckpointError(
            f"{folder}: {broken}; a block is shared as a whole: take the weights from before these were changed"
        )
    elif not plan:
        raise CheckpointError(f"{folder}: {ordinary(names)}")
    return plan


@dataclass(frozen=True)
class BrokenLoop:
    """A loop of ``width`` layers from layer ``start``, ``repeats`` times, but for the tensors of ``pairs``.

    ``pairs``: each tensor that differs, and the one that most other depths have instead.
    """

    start: int
    width: int
    repeats: int
    pairs: tuple[tuple[str, str], ...]
    tensors: int
    """How many tensors of a layer its repetitions share."""

    def __str__(self) -> str:
        last = self.start + self.width * self.repeats - 1
        differ = ", ".join(f"{odd} differs from {usual}" for odd, usual in self.pairs[:NAMED])
        more = f" (and {len(self.pairs) - NAMED} more)" if len(self.pairs) > NAMED else ""
        return (
            f"layers {self.start} to {last} repeat, {self.width} at a time and {self.repeats} times, but for "
            f"{len(self.pairs)} of their {self.tensors * self.width * self.repeats} tensors: {differ}{more}"
        )


def broken_loop(names: LayerNames, covered: int) -> BrokenLoop | None:
    """Return the loop that would cover more than ``covered`` layers if a few tensors were equal; None if there is
    none."""
    layers = first_same(names)
    shared = [names.shared(layer) for layer in range(names.layers)]
    # Biases are no sign that layers were meant to be one: those that were never trained are all zero.
    matrices = [place for place, name in enumerate(shared[0]) if name.endswith(".weight")]
    near: list[int] = []
    for layer, tensors in enumerate(layers):
        alike = (
            c
            for c in dict.fromkeys(near)
            if 2 * sum(layers[c][p] == tensors[p] for p in matrices) > len(matrices)
            and layers[c][len(shared[0]) :] == tensors[len(shared[0]) :]
        )
        near.append(next(alike, layer))
    start, width, repeats = find_loop(near)
    if repeats < 2 or width * repeats <= covered:
        return None
    pairs = []
    for j in range(width):
        depths = range(start + j, start + width * repeats, width)
        for p in range(len(shared[0])):
            usual, _ = Counter(layers[layer][p] for layer in depths).most_common(1)[0]
            pairs += [(shared[layer][p], shared[usual][p]) for layer in depths if layers[layer][p] != usual]
    return BrokenLoop(start, width, repeats, tuple(pairs), len(shared[0]))


def ordinary(names: LayerNames) -> str:
    """Return the message for a model in which no layer repeats another."""
    return (
        f"this is an ordinary model: none of its {names.layers} layers repeats another's weights, so there is no "
        "loop to export; a recursive checkpoint has a block of layers that is applied several times, tied or stored as "
        "equal copies (`edgeloop synth` writes one to try)"
    )
