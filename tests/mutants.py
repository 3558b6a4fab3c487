"""What else a file of JSON could say: every place of it changed, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

Json = Any
Change = tuple[Json, str | int, object]
"""A list or a dict, a place in it, and what to put there."""


def mutants(json: Json) -> Iterator[Change]:
    """Every place of ``json``, and what else could be there."""
    for key, value in list(json.items() if isinstance(json, dict) else enumerate(json)):
        others: list[object] = []
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int | float):
            others = [0, -1, value + 1, value * 4, 1 << 40]
        elif isinstance(value, str):
            others = ["", "state", "norm", None]
        elif value is None:
            others = [0, 1, 3, "norm", "state"]
        elif isinstance(value, list):
            others = [[], value[:-1], value[::-1], [*value, *value[-1:]]]
        yield from ((json, key, other) for other in others if other != value)
        if isinstance(value, dict | list):
            yield from mutants(value)


def transplants(changes: list[Change], count: int = 200) -> Iterator[Change]:
    """Some of the places with what is at another one: names of other values, numbers that other ops have."""
    random = Random(0)
    for _ in range(count):
        (holder, key, _), (other, at, _) = random.choices(changes, k=2)
        yield holder, key, deepcopy(other[at])
