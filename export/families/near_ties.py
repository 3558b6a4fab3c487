"""Why nothing repeats, or less than it might: a block that is broken by a few tensors, or an ordinary model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .llama_ties import ATTENTION, MLP, LlamaNames, find_loop, first_same

PROJECTIONS = (*ATTENTION, *MLP)
NEAR = 4  # of a layer's 7 matrices: layers that share as many were meant to be one
NAMED = 3


@dataclass(frozen=True)
class Broken:
    """A loop of ``width`` layers from layer ``start``, ``repeats`` times, but for the tensors of ``pairs``.

    ``pairs``: each tensor that is alone, and the one that the most other depths have in its place.
    """

    start: int
    width: int
    repeats: int
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        last = self.start + self.width * self.repeats - 1
        differ = ", ".join(f"{odd} differs from {usual}" for odd, usual in self.pairs[:NAMED])
        more = f" (and {len(self.pairs) - NAMED} more)" if len(self.pairs) > NAMED else ""
        return (
            f"layers {self.start} to {last} repeat, {self.width} at a time and {self.repeats} times, but for "
            f"{len(self.pairs)} of their {len(PROJECTIONS) * self.width * self.repeats} matrices: {differ}{more}"
        )


def broken_loop(names: LlamaNames, covered: int) -> Broken | None:
    """The loop that would cover more than ``covered`` layers if a few tensors were equal; None if there is none."""
    layers = first_same(names)
    near: list[int] = []
    for layer, tensors in enumerate(layers):
        alike = [c for c in dict.fromkeys(near) if _in_common(layers[c], tensors) >= NEAR]
        near.append(alike[0] if alike else layer)
    start, width, repeats = find_loop(near)
    if repeats < 2 or width * repeats <= covered:
        return None
    pairs = []
    for j in range(width):
        depths = range(start + j, start + width * repeats, width)
        for p, projection in enumerate(PROJECTIONS):
            usual, _ = Counter(layers[layer][p] for layer in depths).most_common(1)[0]
            pairs += [
                (names.linear(layer, projection), names.linear(usual, projection))
                for layer in depths
                if layers[layer][p] != usual
            ]
    return Broken(start, width, repeats, tuple(pairs))


def ordinary(names: LlamaNames) -> str:
    """What to say of a model in which no layer repeats another."""
    return (
        f"this is an ordinary model: none of its {names.layers} layers repeats another's weights, so there is no "
        "loop to export; a recursive checkpoint has a block of layers that is applied several times, tied or stored as "
        "equal copies (`edgeloop synth` writes one to try)"
    )


def _in_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))
