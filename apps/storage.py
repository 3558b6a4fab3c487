"""How the matrices of a bundle are stored, and in how many bits: what `edgeloop show` says of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.bundle.manifest import Manifest, Storage
from ..runtime.model.codec import ENTRIES, code_shape, rows_of_table
from ..runtime.model.weights import Matrix


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
    found: dict[Storage, dict[str, Matrix]] = {}
    for name, weight in manifest.program.weights.items():
        if isinstance(weight, Matrix):
            found.setdefault(manifest.quantization.storage(name), {})[name] = weight
    kinds = []
    for storage, matrices in found.items():
        weights = sum(each.copies * each.rows * each.columns for each in matrices.values())
        bits = sum(_bits(storage, each) for each in matrices.values())
        kinds.append(StoredKind(_in_words(storage), tuple(matrices), weights, bits / weights))
    return sorted(kinds, key=lambda kind: kind.weights, reverse=True)


def bits_per_weight(manifest: Manifest) -> float:
    """Return the bits of one number of all matrices together, with scales; deltas, norms and the text are left out."""
    kinds = stored_kinds(manifest)
    return sum(kind.bits_per_weight * kind.weights for kind in kinds) / sum(kind.weights for kind in kinds)


def _in_words(storage: Storage) -> str:
    if storage.bits >= 16:
        return f"float{storage.bits}"
    if storage.tables:
        return f"{storage.bits} bits in tables"
    groups = f"in groups of {storage.group_size}" if storage.group_size else "with a scale a row"
    return f"{storage.bits} bits {groups}"


def _bits(storage: Storage, matrix: Matrix) -> int:
    rows, columns = matrix.copies * matrix.rows, matrix.columns
    if storage.bits >= 16:
        return storage.bits * rows * columns
    if storage.tables:
        return storage.bits * rows * columns + 16 * ENTRIES * (rows // rows_of_table(matrix.parts.values()))
    _, groups, size = code_shape(rows, columns, storage.group_size, storage.bits)
    return 8 * rows * groups * (size + 2)
