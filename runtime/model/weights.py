"""The weights of a program: the one definition from which names, shapes and storage of all tensors follow.

A weight of a program is *stored* under its name. A checkpoint's family supplies *parts*: a matrix is a stack of parts
(one engine call for q, k and v), each with a canonical name, ``prefix.part``, where the matrix is ``prefix.name``. All
matrices are [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from msgspec import Struct


class Delta(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What differs between depths in one part of a matrix.

    W + B A with A [R, rank, in], B [R, out, rank] and its scale in B (LoRA); with ``rescaled`` each row of that times a
    number, [R, out] (DoRA, arXiv 2402.09353, its lengths divided at export).
    """

    rank: int
    rescaled: bool = False


class Matrix(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="matrix"):
    """A matrix [Σ rows, columns] of ``parts``: the rows of each by name.

    ``copies``: every part has so many matrices [rows, columns], one under the other, one for each depth (or
    expert). ``bias``: there is a number for each row. ``deltas`` are by part, for ``depths`` depths.
    """

    parts: dict[str, int]
    columns: int
    bias: bool = False
    copies: int = 1
    deltas: dict[str, Delta] = {}
    depths: int = 1

    @property
    def rows(self) -> int:
        """The rows of one copy."""
        return sum(self.parts.values())

    @property
    def per_depth(self) -> bool:
        """Whether it differs between depths."""
        return self.copies > 1 or bool(self.deltas)


class Vector(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="vector"):
    """Numbers [size], or [rows, size]: a row for each depth, or each learned key."""

    size: int
    rows: int | None = None

    @property
    def per_depth(self) -> bool:
        """Whether it differs between depths."""
        return self.rows is not None


Weight = Matrix | Vector


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: its shape, and the canonical tensors that are stacked in it, in order.

    ``kind``: a ``matrix``, which a recipe may store as codes; a ``vector`` (norms, biases), or part of a ``delta``.
    """

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    kind: str

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def sibling(name: str, part: str) -> str:
    """Return the canonical name of ``part`` of the matrix ``name``."""
    prefix, dot, _ = name.rpartition(".")
    return f"{prefix}{dot}{part}"


def tensors(weights: Mapping[str, Weight]) -> Iterator[tuple[str, Tensor]]:
    """Yield every stored tensor with its name; a matrix is ``name.weight``, however it is stored."""
    for name, weight in weights.items():
        if isinstance(weight, Vector):
            shape = (weight.size,) if weight.rows is None else (weight.rows, weight.size)
            yield f"{name}.weight", Tensor(shape, (f"{name}.weight",), "vector")
            continue
        parts = [sibling(name, part) for part in weight.parts]
        shape = (weight.copies * weight.rows, weight.columns)
        yield f"{name}.weight", Tensor(shape, tuple(f"{part}.weight" for part in parts), "matrix")
        if weight.bias:
            biases = tuple(f"{part}.bias" for part in parts)
            yield f"{name}.bias", Tensor((weight.copies * weight.rows,), biases, "vector")
        for part, delta in weight.deltas.items():
            stem, rows, depths = sibling(name, part), weight.parts[part], weight.depths
            sides: dict[str, tuple[int, ...]] = {
                "lora_a": (depths, delta.rank, weight.columns),
                "lora_b": (depths, rows, delta.rank),
            }
            if delta.rescaled:
                sides["lora_scale"] = (depths, rows)
            for side, size in sides.items():
                yield f"{stem}.{side}", Tensor(size, (f"{stem}.{side}",), "delta")


@dataclass(frozen=True)
class Part:
    """One canonical tensor and its shape, of which there is one for each depth where ``per_depth``."""

    name: str
    shape: tuple[int, ...]
    per_depth: bool


def canonical(weights: Mapping[str, Weight]) -> Iterator[Part]:
    """Yield every tensor that a checkpoint's family supplies, in the order of ``tensors``."""
    for name, weight in weights.items():
        for _, tensor in tensors({name: weight}):
            if isinstance(weight, Vector) or tensor.kind == "delta":
                own = tensor.kind == "delta" or weight.per_depth
                yield Part(tensor.parts[0], tensor.shape[1:] if own else tensor.shape, own)
                continue
            for part, rows in zip(tensor.parts, weight.parts.values(), strict=True):
                yield Part(part, (rows, *tensor.shape[1:]), weight.copies > 1)
