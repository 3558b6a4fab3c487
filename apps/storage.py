"""How the matrices of a bundle are stored, and in how many bits: what `edgeloop show` says of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.bundle.manifest import Manifest, Storage
from ..runtime.model.codec import code_shape
from ..runtime.model.weights import tensors


@dataclass(frozen=True)
class StoredKind:
    """Matrices that are stored alike: their names, how many numbers they have, and the bits of one with its scales."""

    storage: str
    matrices: tuple[str, ...]
    weights: int
    bits_per_weight: float


def stored_kinds(manifest: Manifest) -> list[StoredKind]:
    """Return the kinds of matrices in a bundle, that of most weights first.

    The bits of codes are with their scales, and with what the last group of a row is filled up with.
    """
    found: dict[Storage, dict[str, tuple[int, ...]]] = {}
    for full, tensor in tensors(manifest.program.weights):
        if tensor.kind == "matrix":
            name = full.removesuffix(".weight")
            found.setdefault(manifest.quantization.storage(name), {})[name] = tensor.shape
    kinds = []
    for storage, shapes in found.items():
        weights = sum(rows * columns for rows, columns in shapes.values())
        bits = sum(_bits(storage, *shape) for shape in shapes.values())
        kinds.append(StoredKind(_in_words(storage), tuple(shapes), weights, bits / weights))
    return sorted(kinds, key=lambda kind: kind.weights, reverse=True)


def _in_words(storage: Storage) -> str:
    if storage.bits >= 16:
        return f"float{storage.bits}"
    groups = f"in groups of {storage.group_size}" if storage.group_size else "with a scale a row"
    return f"{storage.bits} bits {groups}"


def _bits(storage: Storage, rows: int, columns: int) -> int:
    if storage.bits >= 16:
        return storage.bits * rows * columns
    _, groups, size = code_shape(rows, columns, storage.group_size, storage.bits)
    return 8 * rows * groups * (size + 2)
